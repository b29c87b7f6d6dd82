"""What all checks of the exercises share, and the checks of notebooks 00 and 01 with their corpora of answers."""

import asyncio
import contextlib
import functools
import importlib
import itertools
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from lab import checks
from lab.bench.experiment import HTTP, ClientLog
from lab.checks.bounded import Misfit, virtually
from lab.checks.values import plain, same, shown
from lab.checks.verdict import Verdict, awaiting, compared, is_stub, judged
from lab.virtual import Net
from tests.support_checks import Corpus, judging, poller

# ── notebook 00 ──────────────────────────────────────────────────────────────────────────────────────────────────────


def cancels(published: list[int], received: list[int]) -> Any:
    raise asyncio.CancelledError


def threaded(published: list[int], received: list[int]) -> Any:
    with ThreadPoolExecutor() as pool:
        return pool.submit(len, received).result()


def count_faults_stub(published: Any, received: Any) -> Any:
    """(lost, duplicated), from two lists of sequence numbers."""


def takes_away(published: list[int], received: list[int]) -> tuple[int, int]:
    """Lost and duplicated, by an answer that uses its arguments up."""
    lost = 0
    for seq in published:
        lost += seq not in received
        if seq in received:
            received.remove(seq)
    return lost, len(received)


class Faults(NamedTuple):
    lost: int
    twice: int


class Callable00:
    """An answer that is an object."""

    def __call__(self, published: list[int], received: list[int]) -> tuple[int, int]:
        return len(set(published) - set(received)), len(received) - len(set(received))


def with_numpy(published: list[int], received: list[int]) -> tuple[Any, Any]:
    kinds, times = np.unique(np.array(received, int), return_counts=True)
    return np.sum(~np.isin(np.array(published, int), kinds)), np.sum(times - 1)


def neighbours_only(published: list[int], received: list[int]) -> tuple[int, int]:
    twice = sum(a == b for a, b in itertools.pairwise(received))
    return len(set(published) - set(received)), twice


def not_beyond_the_last(published: list[int], received: list[int]) -> tuple[int, int]:
    seen = twice = 0
    for seq in received:
        twice += seq <= seen
        seen = max(seen, seq)
    return len(set(published) - set(received)), twice


def for_ever(*_: Any) -> Any:
    while True:
        pass


async def asynchronous(*_: Any) -> Any:
    return (0, 0)


def delays_stub(planned: Any, sent: Any, answered: Any) -> Any: ...


def minus(a: Any, b: Any) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


START_HERE = [
    Corpus(
        checks.count_faults,
        count_faults_stub,
        right={
            "sets": lambda p, r: (len(set(p) - set(r)), len(r) - len(set(r))),
            "a list for the pair": lambda p, r: [len(set(p) - set(r)), len(r) - len(set(r))],
            "Counter": lambda p, r: (sum(n not in r for n in p), sum((Counter(r) - Counter(set(r))).values())),
            "uses its arguments up": takes_away,
            "numpy": with_numpy,
            "floats": lambda p, r: (float(len(set(p) - set(r))), float(len(r) - len(set(r)))),
            "an object": Callable00(),
            "partial": functools.partial(lambda zero, p, r: (zero + len(set(p) - set(r)), len(r) - len(set(r))), 0),
            "a generator": lambda p, r: (n for n in (len(set(p) - set(r)), len(r) - len(set(r)))),
            "a named tuple": lambda p, r: Faults(len(set(p) - set(r)), len(r) - len(set(r))),
        },
        wrong={
            "cancels": (cancels, "It raised CancelledError"),
            "a thread": (threaded, "It takes a thread, which would be the real world's"),
            "lengths": (lambda p, r: (len(p) - len(r), len(r) - len(set(r))), "comparing lengths"),
            "lengths, not below zero": (
                lambda p, r: (max(0, len(p) - len(r)), len(r) - len(set(r))),
                "comparing lengths",
            ),
            "duplicates in a set": (lambda p, r: (len(set(p) - set(r)), 0), "in a set"),
            "how many came more than once": (
                lambda p, r: (len(set(p) - set(r)), sum(n > 1 for n in Counter(r).values())),
                "three times",
            ),
            "all arrivals of those": (
                lambda p, r: (len(set(p) - set(r)), sum(n for n in Counter(r).values() if n > 1)),
                "the first of them",
            ),
            "turned round": (lambda p, r: (len(r) - len(set(r)), len(set(p) - set(r))), "turned round"),
            "neighbours only": (neighbours_only, "as long as they come in order"),
            "not beyond the last": (not_beyond_the_last, "as long as they come in order"),
            "constants": (lambda p, r: (7, 7), "For [1, 2, 3], [1, 2, 3] it gives [7, 7], and should give (0, 0)"),
            "no return": (lambda p, r: print(end=""), "Is there a `return`?"),
            "one number": (lambda p, r: len(p) - len(r), "should give (0, 0)"),
            "too few arguments": (lambda p: p, "raised TypeError"),
            "an index": (lambda p, r: p[9], "raised IndexError"),
            "a name that is not there": (lambda p, r: nothing_of_that_name, "raised NameError"),  # type: ignore[name-defined]  # noqa: F821
            "a builtin": (len, "raised TypeError"),
            "a class": (dict, "raised TypeError"),
            "an async def": (asynchronous, "It is an `async def`"),
            "endless": (for_ever, "It does not come to an end"),
            "it leaves": (lambda p, r: exit(), "raised SystemExit"),
        },
    ),
    Corpus(
        checks.delays_from_plan,
        delays_stub,
        right={
            "a list": lambda planned, sent, answered: minus(answered, planned),
            "a tuple": lambda planned, sent, answered: tuple(minus(answered, planned)),
            "numpy": lambda planned, sent, answered: np.array(answered) - np.array(planned),
            "single precision": lambda planned, sent, answered: np.float32(answered) - np.float32(planned),
            "map": lambda planned, sent, answered: map(lambda a, p: a - p, answered, planned),
            "a generator": lambda planned, sent, answered: (a - p for a, p in zip(answered, planned, strict=True)),
            "fractions": lambda planned, sent, answered: [
                Fraction(a) - Fraction(p) for a, p in zip(answered, planned, strict=True)
            ],
            "decimals": lambda planned, sent, answered: [
                Decimal(str(a)) - Decimal(str(p)) for a, p in zip(answered, planned, strict=True)
            ],
            "in two parts": lambda planned, sent, answered: [
                a - s + s - p for p, s, a in zip(planned, sent, answered, strict=True)
            ],
        },
        wrong={
            "from sending": (lambda planned, sent, answered: minus(answered, sent), "from sending"),
            "lateness": (lambda planned, sent, answered: minus(sent, planned), "how late each question"),
            "backwards": (lambda planned, sent, answered: minus(planned, answered), "[-0.5, -0.6, -0.1]"),
            "the first only": (lambda planned, sent, answered: answered[0] - planned[0], "should give [0.5, 0.6, 0.1]"),
            "constants": (lambda planned, sent, answered: [0.5, 0.6, 0.1], "For [1], [3], [3.25] it gives"),
            "arithmetic with lists": (lambda planned, sent, answered: answered - planned, "raised TypeError"),
            "without an end": (lambda planned, sent, answered: iter(int, 1), "has no end"),
        },
    ),
]

# ── notebook 01 ──────────────────────────────────────────────────────────────────────────────────────────────────────


def interval_stub(budget: Any, transit: Any) -> Any: ...


def by_search(budget: float, transit: float) -> float:
    low, high = 0.0, 10 * budget
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if 0.95 * middle + transit <= budget else (low, middle)
    return low


def pause_stub(interval: Any, rng: Any) -> Any: ...


def triangular(interval: float, rng: random.Random) -> float:
    return rng.triangular(0.9 * interval, 1.1 * interval)


async def client_stub(url: Any, log: Any) -> Any: ...


async def silent(url: str, log: ClientLog) -> None:
    """A client that asks without saying so."""
    async with httpx.AsyncClient(**HTTP) as http:
        await http.get(f"{url}/updates")


async def conditional(url: str, log: ClientLog) -> None:
    """A client that asks only for what is different, on a grid, and adds the interval to what the server asks for."""
    loop = asyncio.get_running_loop()
    cursor, tag, due = log.cursor, "", loop.time()
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            due += 5
            with contextlib.suppress(TimeoutError), log.request():
                headers = {"If-None-Match": tag} if tag else {}
                async with asyncio.timeout(3):
                    answer = await http.get(f"{url}/updates?after={cursor}", headers=headers)
            if answer.status_code == 200:
                for update in answer.json()["updates"]:
                    log.deliver(update)
                cursor, tag = answer.json()["cursor"], answer.headers["etag"]
            elif answer.status_code == 503:
                due = loop.time() + float(answer.headers["retry-after"]) + 5
            await asyncio.sleep(max(0, due - loop.time()))


def catching(client: Callable[[str, ClientLog], Any]) -> Callable[[str, ClientLog], Any]:
    async def begins_again(url: str, log: ClientLog) -> None:
        while True:
            try:
                await client(url, log)
            except Exception:
                await asyncio.sleep(5)

    return begins_again


async def raises_for_status(url: str, log: ClientLog) -> None:
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            with log.request():
                (await http.get(f"{url}/updates")).raise_for_status()
            await asyncio.sleep(5)


async def synchronous_call(url: str, log: ClientLog) -> None:
    with log.request():
        httpx.get(f"{url}/updates", trust_env=False)  # noqa: ASYNC210


async def in_a_thread(url: str, log: ClientLog) -> None:
    with log.request():
        await asyncio.to_thread(httpx.get, f"{url}/updates")


async def dropping(url: str, log: ClientLog) -> None:
    """Asks for everything each time, and hands over what it has not handed over yet."""
    handed_over = set[int]()
    take = log.deliver

    def deliver(update: Any) -> None:
        if update["seq"] not in handed_over:
            handed_over.add(update["seq"])
            take(update)

    log.deliver = deliver  # type: ignore[method-assign]
    await poller(moves=False)(url, log)


async def sleeps(url: str, log: ClientLog) -> None:
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            with log.request():
                await http.get(f"{url}/updates")
            time.sleep(5)  # noqa: ASYNC251


async def busy(url: str, log: ClientLog) -> None:
    while True:
        pass


async def busy_awaiting(url: str, log: ClientLog) -> None:
    with log.request():
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def misspelt(url: str, log: ClientLog) -> None:
    with log.request():
        updates = answers["updates"]  # type: ignore[name-defined]  # noqa: F821, F841


async def elsewhere(url: str, log: ClientLog) -> None:
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            with log.request():
                await http.get(f"{url}/update")
            await asyncio.sleep(5)


def not_async(url: str, log: ClientLog) -> None:
    log.request()


def backing_off() -> Callable[[float], float]:
    pauses = iter((6.0, 12.0, 24.0, 48.0))
    return lambda seconds: next(pauses)


SHORT_POLLING = [
    Corpus(
        checks.longest_interval,
        interval_stub,
        right={
            "solved": lambda budget, transit: (budget - transit) / 0.95,
            "another order": lambda budget, transit: budget / 0.95 - transit / 0.95,
            "twentieths": lambda budget, transit: (budget - transit) * 20 / 19,
            "by search": by_search,
            "a fraction": lambda budget, transit: (Fraction(budget) - Fraction(transit)) * Fraction(20, 19),
            "a decimal": lambda budget, transit: (Decimal(budget) - Decimal(transit)) / Decimal("0.95"),
            "numpy": lambda budget, transit: np.divide(budget - transit, 0.95),
            "single precision": lambda budget, transit: np.float32((budget - transit) / 0.95),
            "no dimensions": lambda budget, transit: np.array((budget - transit) / 0.95),
        },
        wrong={
            "the mean": (lambda b, d: 2 * (b - d), "*mean*"),
            "no way back": (lambda b, d: b / 0.95, "way back is missing"),
            "the round trip": (lambda b, d: (b - 2 * d) / 0.95, "not the round trip"),
            "all of them": (lambda b, d: b - d, "*all* updates"),
            "multiplied": (lambda b, d: 0.95 * (b - d), "should give 1.05263"),
            "a constant": (lambda b, d: 1.0 / 0.95, "For 2, 0.1 it gives"),
            "a text": (lambda b, d: "soon", "it gives 'soon', and should give 1.05263"),
            "infinite": (lambda b, d: float("inf"), "it gives inf"),
        },
    ),
    Corpus(
        checks.jittered,
        pause_stub,
        right={
            "a factor": lambda interval, rng: interval * rng.uniform(0.9, 1.1),
            "a summand": lambda interval, rng: interval + rng.uniform(-0.1, 0.1) * interval,
            "random": lambda interval, rng: interval * (0.9 + 0.2 * rng.random()),
            "turned round": lambda interval, rng: rng.uniform(1.1 * interval, 0.9 * interval),
            "in thousandths": lambda interval, rng: interval * rng.randint(900, 1100) / 1000,
            "triangular": triangular,
            "numpy": lambda interval, rng: np.float64(interval) * np.float64(rng.uniform(0.9, 1.1)),
            "numpy, seeded": lambda interval, rng: (
                interval * np.random.default_rng(rng.getrandbits(32)).uniform(0.9, 1.1)
            ),
        },
        wrong={
            "none": (lambda interval, rng: interval, "herd stays together"),
            "longer only": (lambda interval, rng: interval * rng.uniform(1, 1.1), "only ever waits longer"),
            "shorter only": (lambda interval, rng: interval * rng.uniform(0.9, 1), "only ever waits less"),
            "from nothing": (lambda interval, rng: interval * rng.uniform(0, 1.1), "should fill 9 to 11 s"),
            "a fifth": (lambda interval, rng: interval * rng.uniform(0.8, 1.2), "should fill 9 to 11 s"),
            "for ten only": (lambda interval, rng: rng.uniform(9, 11), "do not depend on `interval`"),
            "a factor alone": (lambda interval, rng: rng.uniform(0.9, 1.1), "do not depend on `interval`"),
            "the deviation alone": (lambda interval, rng: interval * rng.uniform(-0.1, 0.1), "the deviation alone"),
            "a tenth of a second": (lambda interval, rng: interval + rng.uniform(-0.1, 0.1), "± 0.1 s whatever"),
            "whole seconds": (lambda interval, rng: round(interval * rng.uniform(0.9, 1.1)), "should fill"),
            "tenths": (lambda interval, rng: interval * round(rng.uniform(0.9, 1.1), 2), "in lumps"),
            "one or the other": (lambda interval, rng: interval * rng.choice([0.9001, 1.0999]), "in lumps"),
            "randint": (lambda interval, rng: rng.randint(round(0.9 * interval), round(1.1 * interval)), "should fill"),
            "its own seed": (lambda interval, rng: interval * random.Random(3).uniform(0.9, 1.1), "herd stays"),
            "the module": (lambda interval, rng: interval * random.uniform(0.9, 1.1), "from `rng`"),
            "numpy's own": (lambda interval, rng: interval * np.random.uniform(0.9, 1.1), "from `rng`"),
            "a text": (lambda interval, rng: "soon", "'soon', no number"),
            "milliseconds": (lambda interval, rng: 1000 * interval * rng.uniform(0.9, 1.1), "should fill 9 to 11 s"),
            "mostly below": (lambda interval, rng: interval * (0.9 + 0.2 * rng.random() ** 3), "the mean pause is 9.5"),
            "not a number": (lambda interval, rng: float("nan"), "nan, no number"),
            "no return": (lambda interval, rng: print(end=""), "Is there a `return`?"),
            "a wrong name": (lambda interval, rng: rng.unifrom(0.9, 1.1), "has no attribute 'unifrom'"),
        },
    ),
    Corpus(
        checks.polling_client,
        client_stub,
        right={
            "the solution": poller(),
            "and the interval": poller(heeds=lambda seconds: seconds + 5),
            "never less than the interval": poller(heeds=lambda seconds: max(5.0, seconds)),
            "a little longer": poller(heeds=lambda seconds: 1.05 * seconds),
            "on a grid, conditional": conditional,
            "a plain def that gives a coroutine": lambda url, log: poller()(url, log),
            "partial": functools.partial(poller()),
        },
        wrong={
            "no cursor": (poller(cursor=lambda first, last: None), "begins at “now”"),
            "the first cursor": (poller(moves=False), "does not move"),
            "from the oldest": (poller(cursor=lambda first, last: "0"), "does not move"),
            "takes a 503 for an answer": (poller(looks_at_status=False), "stopped at the 503"),
            "raises at a 503": (raises_for_status, "stopped after the 503"),
            "never heeds": (poller(heeds=None), "heed Retry-After"),
            "12 s": (poller(heeds=lambda seconds: 12), "came back after 12.1 s"),
            "15 s": (poller(heeds=lambda seconds: 15), "came back after 15.1 s"),
            "17 s": (poller(heeds=lambda seconds: 17), "did so for 17.1 s"),
            "20 s": (poller(heeds=lambda seconds: 20), "`Retry-After: 8`"),
            "30 s": (poller(heeds=lambda seconds: 30), "`Retry-After: 17`"),
            "60 s": (poller(heeds=lambda seconds: 60), "`Retry-After: 17`"),
            "doubling": (poller(heeds=backing_off()), "heed Retry-After"),
            "milliseconds": (poller(heeds=lambda seconds: seconds / 1000), "heed Retry-After"),
            "a time as cursor": (poller(cursor=lambda first, last: f"{time.time()}"), "a cursor is opaque"),
            "starts over": (poller(starts_over=True), "started over"),
            "gives up": (poller(gives_up=True), "never asked again"),
            "no time limit": (poller(limit=None), "a time limit is missing"),
            "a time limit below the round trip": (poller(limit=0.01), "shorter than a round trip"),
            "in a thread": (in_a_thread, "From its thread it reaches for the real world"),
            "drops what comes again": (dropping, "came again, and were dropped: the cursor does not move"),
            "no pause": (poller(pause=0.0), "pause missing"),
            "1 s": (poller(pause=1.0, heeds=lambda seconds: seconds), "lie 1.1 s; it should ask every 5 s"),
            "15 s between": (poller(pause=15.0), "lie 15.1 s"),
            "delivers nothing": (poller(delivers=0), "none was handed over"),
            "delivers twice": (poller(delivers=2), "handed over twice"),
            "delivers the latest": (poller(latest=True), "not handed over"),
            "without log.request": (silent, "no request inside"),
            "another address": (elsewhere, "answered 404"),
            "a synchronous call": (synchronous_call, "It waits without `await`"),
            "time.sleep": (sleeps, "waits by `time.sleep(5)`"),
            "time.sleep, caught": (catching(sleeps), "waits by `time.sleep(5)`"),
            "busy": (busy, "does not come to an end"),
            "busy, awaiting": (busy_awaiting, "does not come to an end"),
            "a name that is not there": (misspelt, "raised NameError"),
            "a plain def": (not_async, "It is a plain `def`"),
        },
    ),
]

CORPORA = START_HERE + SHORT_POLLING
test_a_right_answer_passes, test_a_wrong_answer_is_told_why, test_no_answer_is_told_so = judging(CORPORA)

# ── all corpora ──────────────────────────────────────────────────────────────────────────────────────────────────────


def all_corpora() -> list[Corpus]:
    modules = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("test_checks*.py"))]
    return [corpus for module in modules for corpus in getattr(module, "CORPORA", [])]


def test_every_exercise_has_a_corpus() -> None:
    """Each exercise that a notebook checks has at least seven right answers and seven wrong ones."""
    exercises = {name for name in checks.__all__ if name[0].islower()}
    corpora = {corpus.name: corpus for corpus in all_corpora()}
    for name, corpus in corpora.items():
        print(f"{name:24} {len(corpus.right):3} right, however unusual  {len(corpus.wrong):3} wrong, and told why")
        assert len(corpus.right) >= 7, name
        assert len(corpus.wrong) >= 7, name
    assert set(corpora) == exercises


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.int64(3), 3),
        (np.float32(0.1), 0.1),
        (np.array(2.5), 2.5),
        (np.longdouble(2.5), 2.5),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (Fraction(1, 3), 1 / 3),
        (Decimal("0.6"), 0.5 + 0.1),
        (2, 2.0),
        (True, True),
        (np.bool_(False), False),
        (range(3), (0, 1, 2)),
        (map(int, "12"), [1, 2]),
        (b"ab", b"ab"),
        ({"a": (1,)}, {"a": [1]}),
        (None, None),
    ],
)
def test_values_of_any_kind_are_the_same(given: Any, wanted: Any) -> None:
    """A number is the same number whoever made it, and a row of them whatever holds it."""
    assert same(plain(given), plain(wanted))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(float("nan"), 1.0), (None, 0), ("1", 1), ({1, 2}, [1, 2]), ([1], [1, 2]), (1.001, 1.0), (10**400, 1.0), (3, [3])],
)
def test_other_values_are_not(given: Any, wanted: Any) -> None:
    """What is no number, another number, or another row is not the same."""
    assert not same(plain(given), plain(wanted))


def test_an_objects_address_is_not_shown() -> None:
    """It would be another one at each run."""
    assert shown(object()) == "<object object>"


def test_values_are_shown_rounded() -> None:
    """A text shows what the number means, not how it is stored, and is never long."""
    assert shown([0.5, 0.1 + 0.5, (1, 2.0)]) == "[0.5, 0.6, (1, 2)]"
    assert len(shown(list(range(1000)))) <= 100


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mistake_is_named_only_if_it_is_the_only_one() -> None:
    """Where two mistakes give the same results, neither is named: what was expected and what came is shown."""
    twice = {"doubled": lambda n: 2 * n, "added to itself": lambda n: n + n, "zero": lambda n: 0}
    cases = [(1,), (3,)]
    assert compared(lambda n: 0, lambda n: n, twice, cases, "").text == "zero"
    assert compared(lambda n: 2 * n, lambda n: n, twice, cases, "").text == "For 1 it gives 2, and should give 1."
    assert "divided" not in compared(lambda n: 0, lambda n: n, {"divided": lambda n: n / 0}, cases, "").text


def stub_with_words(*_: Any) -> Any:
    """Words."""


class StubObject:
    def __call__(self) -> Any: ...


class RealObject:
    def __call__(self) -> int:
        return 7


@pytest.mark.parametrize("stub", [stub_with_words, client_stub, StubObject(), functools.partial(stub_with_words, 1)])
def test_a_stub_of_any_kind_is_one(stub: Any) -> None:
    """Nothing but words and dots is a stub, whatever it is wrapped in."""
    assert is_stub(stub)


@pytest.mark.parametrize("answer", [for_ever, RealObject(), len, dict, poller(), functools.partial(len), "".join])
def test_what_does_something_is_no_stub(answer: Any) -> None:
    """A loop, an object, a builtin and a class are no stubs."""
    assert not is_stub(answer)


def test_an_exception_names_the_line_of_the_answer() -> None:
    """A verdict on an exception has two lines: what was raised, and the reader's own line, however deep below."""

    def answer(n: int) -> float:
        return statistics.mean([])

    text = compared(answer, lambda n: n, {}, [(1,)], "").text
    assert text.splitlines()[0] == "For 1: It raised StatisticsError: mean requires at least one data point,"
    assert text.splitlines()[1].endswith("`return statistics.mean([])`")


def test_an_endless_loop_names_its_line_and_leaves_no_thread() -> None:
    """A loop without an end is stopped within seconds, in a line that is named; its thread ends."""
    text = compared(for_ever, lambda n: n, {}, [(1,)], "").text
    assert "does not come to an end: not finished after 2 s of work" in text
    assert "`while True:`" in text or "`pass`" in text
    assert not [thread for thread in threading.enumerate() if thread.name == "virtual"]


def test_what_the_check_does_wrong_is_raised() -> None:
    """A mistake in the check itself is no verdict on the answer."""

    source = compile("def judge(answer):\n    return {}['nothing']", str(Path(checks.__file__).parent / "x.py"), "exec")
    space: dict[str, Any] = {}
    exec(source, space)
    with pytest.raises(KeyError):
        judged(space["judge"])(len)


def test_sleeping_in_a_thread_is_no_mistake() -> None:
    """time.sleep blocks the loop where it is called on it, not in a thread."""

    async def in_a_thread(net: Net) -> str:
        await asyncio.to_thread(time.sleep, 5)
        return "awake"

    assert virtually(in_a_thread) == "awake"


def test_a_check_runs_beside_a_running_loop() -> None:
    """In a notebook a loop is running already; a check does not mind."""

    async def cell() -> Verdict:
        return checks.longest_interval(lambda budget, transit: (budget - transit) / 0.95)

    assert asyncio.run(cell()).ok


def test_what_cannot_be_awaited_is_said() -> None:
    """A plain function where an async one is asked for is told apart from one that fails."""
    with pytest.raises(Misfit, match="plain `def`"):
        asyncio.run(awaiting(lambda: None)())
