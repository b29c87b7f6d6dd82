"""The checks of notebook 02: right answers pass, however unusual, and wrong ones are told what is wrong."""

import asyncio
import base64
import contextlib
import functools
import itertools
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
import pytest

from lab import checks
from lab.bench.experiment import HTTP, ClientLog
from lab.checks.long_polling import _questioned
from tests.support_checks import Corpus, judging

# ── requests when nothing happens ────────────────────────────────────────────────────────────────────────────────────


def quiet_stub(clients: Any, hold: Any, rtt: Any) -> Any:
    """An exercise's empty function."""


def counted(clients: float, hold: float, rtt: float) -> float:
    """By counting, over a long time."""
    cycles = 100_000
    return sum(clients for _ in range(cycles)) / (cycles * (hold + rtt))


def reads_a_global(clients: float, hold: float, rtt: float) -> float:
    return clients / (hold + round_trip)  # type: ignore[name-defined,no-any-return]  # noqa: F821  # that is the slip


async def quiet_async(clients: float, hold: float, rtt: float) -> float:
    return clients / (hold + rtt)


class Quiet:
    def __call__(self, clients: float, hold: float, rtt: float) -> float:
        return clients * (hold + rtt) ** -1


QUIET = Corpus(
    checks.quiet_requests,
    quiet_stub,
    right={
        "the solution": lambda clients, hold, rtt: clients / (hold + rtt),
        "one by one": lambda clients, hold, rtt: sum(1 / (hold + rtt) for _ in range(int(clients))),
        "counted": counted,
        "numpy": lambda clients, hold, rtt: np.divide(clients, np.add(hold, rtt)),
        "no dimensions": lambda clients, hold, rtt: np.array(clients) / (hold + rtt),
        "a fraction": lambda clients, hold, rtt: Fraction(clients) / (Fraction(hold) + Fraction(rtt)),
        "a decimal": lambda clients, hold, rtt: Decimal(clients) / (Decimal(hold) + Decimal(rtt)),
        "single precision": lambda clients, hold, rtt: np.float32(clients / (hold + rtt)),
        "an object": Quiet(),
        "partial": functools.partial(lambda one, clients, hold, rtt: one * clients / (hold + rtt), 1),
    },
    wrong={
        "one client's": (lambda clients, hold, rtt: 1 / (hold + rtt), "one client's"),
        "no gap": (lambda clients, hold, rtt: clients / hold, "gap between"),
        "dense news": (lambda clients, hold, rtt: clients / rtt, "dense news"),
        "a time": (lambda clients, hold, rtt: clients * (hold + rtt), "how many there are in a second"),
        "two round trips": (lambda clients, hold, rtt: clients / (hold + 2 * rtt), "one round trip"),
        "subtracted": (lambda clients, hold, rtt: clients / (hold - rtt), "not out of it"),
        "one way": (lambda clients, hold, rtt: clients / (hold + rtt / 2), "not one way"),
        "a minute": (lambda clients, hold, rtt: 60 * clients / (hold + rtt), "in a minute"),
        "jittered": (lambda clients, hold, rtt: clients / (0.95 * hold + rtt), "exactly `hold`"),
        "a constant": (lambda clients, hold, rtt: 1 / 10.1, "For 1000, 30, 0.05 it gives"),
        "whole": (lambda clients, hold, rtt: clients // (hold + rtt), "it gives 0, and should give 0.0990099"),
        "a text": (lambda clients, hold, rtt: "few", "it gives 'few'"),
        "a pair": (lambda clients, hold, rtt: (clients, hold + rtt), "should give 0.0990099"),
        "no return": (lambda clients, hold, rtt: print(end=""), "Is there a `return`?"),
        "a wrong name": (reads_a_global, "raised NameError"),
        "async": (quiet_async, "async def"),
    },
)

# ── a client that finds its hold ─────────────────────────────────────────────────────────────────────────────────────


async def client_stub(url: str, log: ClientLog) -> None:
    """The exercise's empty client."""


def finder(
    *,
    first: float = 60.0,
    less: Callable[[float], float] = lambda wait: wait / 2,
    more: Callable[[float], float] = lambda wait: wait,  # after an answer
    limit: Callable[[float], float | None] = lambda wait: wait + 5,
    pause: float = 0.0,  # after an answer
    pause_after_504: float = 1.0,
    cursor: Callable[[str, str], str | None] = lambda first, last: last,
    starts_over: bool = False,
    delivers: int = 1,
    latest: bool = False,
    dies_of: tuple[type[Exception], ...] = (),
    gives_up: bool = False,
    looks_at_status: bool = True,
    asks_for_a_hold: bool = True,
    lessens_always: bool = False,  # for a request without an answer, too
    says_so: bool = True,
    path: str = "/updates",
) -> Callable[[str, ClientLog], Any]:
    """The solution, or one of its mutants."""

    async def client(url: str, log: ClientLog) -> None:
        last, wait = log.cursor, first
        async with httpx.AsyncClient(**HTTP) as http:
            while True:
                rest = pause
                try:
                    with log.request() if says_so else contextlib.nullcontext():
                        after = cursor(log.cursor, last)
                        question: dict[str, Any] = {"after": after} if after is not None else {}
                        if asks_for_a_hold:
                            question["wait"] = wait
                        patience = httpx.Timeout(5, read=limit(wait))
                        response = await http.get(f"{url}{path}", params=question, timeout=patience)
                        if response.status_code == 504 and looks_at_status:
                            if gives_up:
                                return
                            wait, rest = less(wait), pause_after_504
                            last = log.cursor if starts_over else last
                        else:
                            answer = response.json()
                            updates = answer["updates"]
                            for update in delivers * (updates[-1:] if latest else updates):
                                log.deliver(update)
                            last, wait = answer["cursor"], more(wait)
                except httpx.HTTPError as error:
                    if isinstance(error, dies_of):
                        raise
                    wait = less(wait) if lessens_always else wait
                await asyncio.sleep(rest)

    return client


async def raises_for_status(url: str, log: ClientLog) -> None:
    """By exceptions alone, with `asyncio.timeout`; half a second less than 29/30 of what was cut."""
    last, wait = log.cursor, 60.0
    while True:
        try:
            with log.request():
                async with asyncio.timeout(wait + 9), httpx.AsyncClient(**HTTP) as http:
                    response = await http.get(f"{url}/updates?after={last}&wait={wait}")
                    response.raise_for_status()
                    for update in response.json()["updates"]:
                        log.deliver(update)
                    last = response.json()["cursor"]
        except httpx.HTTPStatusError as refused:
            if refused.response.status_code != 504:
                raise
            wait -= 8
            await asyncio.sleep(log.rng.uniform(0, 2))
        except TimeoutError:
            pass


class Searching:
    """Between a hold that has been cut and one that has not, by halving what is between them, until that is little."""

    async def __call__(self, url: str, log: ClientLog) -> None:
        good, bad, last = 0.0, 60.0, log.cursor
        wait = bad
        async with httpx.AsyncClient(**HTTP | {"timeout": httpx.Timeout(70)}) as http:
            while True:
                begin = time.monotonic()
                try:
                    with log.request():
                        question: dict[str, Any] = {"after": last, "wait": wait}
                        response = await http.get(f"{url}/updates", params=question, timeout=wait + 10)
                        if response.is_success:
                            for update in response.json()["updates"]:
                                log.deliver(update)
                            last = response.json()["cursor"]
                            if not response.json()["updates"]:
                                good = max(good, 0.9 * (time.monotonic() - begin))
                        else:
                            bad = wait
                            wait = (good + bad) / 2 if bad - good > 4 else good
                except httpx.TimeoutException:
                    continue


async def patient_only(url: str, log: ClientLog) -> None:
    """The notebook's `lasting`, with its hold of 30 s."""
    await finder(first=30, less=lambda wait: wait)(url, log)


async def synchronous_call(url: str, log: ClientLog) -> None:
    with log.request():
        httpx.get(f"{url}/updates", params={"after": log.cursor})  # noqa: ASYNC210


async def sleeps(url: str, log: ClientLog) -> None:
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            with log.request():
                await http.get(f"{url}/updates", params={"after": log.cursor})
            time.sleep(1)  # noqa: ASYNC251


async def busy(url: str, log: ClientLog) -> None:
    while True:
        pass


def not_async(url: str, log: ClientLog) -> None:
    log.request()


async def polls(url: str, log: ClientLog) -> None:
    """Polling in disguise: asks for no hold, each 5 s."""
    await finder(first=0, pause=5)(url, log)


CLIENTS = Corpus(
    checks.long_polling_client,
    client_stub,
    right={
        "the solution": finder(),
        "a quarter less": finder(less=lambda wait: 0.75 * wait),
        "8 s less, by exceptions": raises_for_status,
        "by search, an object": Searching(),
        "ten more": finder(limit=lambda wait: wait + 10, less=lambda wait: max(12, wait / 2), first=53),
        "no pause after a 504": finder(pause_after_504=0.0),
        "from 40 s": finder(first=40, less=lambda wait: wait * 0.7),
        "whole seconds": finder(less=lambda wait: int(wait * 2 / 3)),
        "a plain def that gives a coroutine": lambda url, log: finder()(url, log),
        "partial": functools.partial(finder()),
        "a little pause": finder(pause=0.2),
    },
    wrong={
        "lasting": (patient_only, "for 30 s every time, and the proxy cuts it"),
        "60 s for ever": (finder(less=lambda wait: wait), "for 60 s every time"),
        "10 s from the beginning": (finder(first=10), "It was never cut: begin with 60 s"),
        "down to 1 s": (finder(less=lambda wait: 1), "in the end it asks to be held for 1."),
        "less for every timeout": (
            finder(lessens_always=True, limit=lambda wait: wait / 2, less=lambda wait: max(4, wait / 2)),
            "its own time limit must lie above",
        ),
        "up again": (finder(more=lambda wait: 60), "and is cut: ask for less after each 504, and stay there"),
        "a minute in ms": (finder(first=60_000), "At first it asks to be held for 60000 s"),
        "a second less": (finder(less=lambda wait: wait - 1), "and is cut: ask for less after each 504"),
        "7 % less": (finder(less=lambda wait: 0.93 * wait), "times before it had found its hold"),
        "no time limit": (finder(limit=lambda wait: None), "a time limit is missing"),
        "httpx's own limit": (finder(limit=lambda wait: 5), "gives up after 5.0 s itself"),
        "a minute's limit more": (finder(limit=lambda wait: wait + 60), "10 s more at most"),
        "takes a 504 for an answer": (finder(looks_at_status=False), "does not outlive the 504"),
        "gives up at a 504": (finder(gives_up=True), "never asked again"),
        "dies of a timeout": (finder(dies_of=(httpx.TimeoutException,)), "does not outlive the request"),
        "no cursor": (finder(cursor=lambda first, last: None), "begins at “now”"),
        "the first cursor": (finder(cursor=lambda first, last: first), "does not move"),
        "a time as cursor": (finder(cursor=lambda first, last: f"{time.time()}"), "a cursor is opaque"),
        "starts over": (finder(starts_over=True), "came again"),
        "delivers twice": (finder(delivers=2), "handed over twice"),
        "delivers the latest": (finder(latest=True), "not handed over"),
        "delivers nothing": (finder(delivers=0), "none was handed over"),
        "no hold": (finder(first=0), "is it held at all?"),
        "polls": (polls, "the server does the waiting, ask at once"),
        "a pause": (finder(pause=2.0), "lie 2.0 s"),
        "without log.request": (finder(says_so=False), "no request inside"),
        "another address": (finder(path="/update"), "answered 404"),
        "the default hold": (finder(asks_for_a_hold=False, limit=lambda wait: 35), "It never says how long to hold it"),
        "a synchronous call": (synchronous_call, "It waits without `await`"),
        "time.sleep": (sleeps, "waits by `time.sleep(1)`"),
        "busy": (busy, "does not come to an end"),
        "a plain def": (not_async, "It is a plain `def`"),
    },
)

# ── the cursor ───────────────────────────────────────────────────────────────────────────────────────────────────────


def cursor_stub(log: Any, after: Any) -> Any:
    """Return (entries, cursor)."""


def sealed(log: Any, after: Any) -> Any:
    """An opaque cursor, as the course's servers have."""
    begin = len(log) if after is None else json.loads(base64.b64decode(after))["at"]
    return log[begin:], base64.b64encode(json.dumps({"at": len(log)}).encode()).decode()


def tickets() -> Any:
    """A cursor that says nothing to anybody but the server, which remembers places, not clients."""
    places: dict[str, int] = {}

    def answer(log: Any, after: Any) -> Any:
        begin = len(log) if after is None else places[after]
        ticket = uuid.UUID(int=random.Random(len(log)).getrandbits(128)).hex
        places[ticket] = len(log)
        return log[begin:], ticket

    return answer


def uses_it_up(log: Any, after: Any) -> Any:
    end = len(log)
    for _ in range(end if after is None else after):
        log.pop(0)
    return log, end


def by_hand(log: Any, after: Any) -> Any:
    entries = []
    for number, entry in enumerate(log, 1):
        if after is not None and number > after:
            entries.append(entry)
    return [entries, len(log)]


def yields(log: Any, after: Any) -> Any:
    def entries() -> Iterator[Any]:
        yield from itertools.islice(log, len(log) if after is None else after, None)

    return entries(), len(log)


class Half:
    def __call__(self, log: Any, after: Any) -> Any:
        return tuple(log)[len(log) if after is None else int(after[1:]) :], f"#{len(log)}"


def with_numpy(log: Any, after: Any) -> Any:
    places = np.arange(len(log))
    begin = len(log) if after is None else after
    return [log[place] for place in places[places >= begin]], np.int64(len(log))


def later(log: Any, after: Any, start: Callable[[Any], int] = lambda place: place) -> Any:
    return [] if after is None else log[start(after) :]


def remembers() -> Any:
    sent: list[Any] = []

    def answer(log: Any, after: Any) -> Any:
        new = log[len(sent) :]
        sent.extend(new)
        return new, len(log)

    return answer


def newest(log: Any) -> float:
    return log[-1].published if log else 0.0


def by_clock(log: Any, after: Any) -> Any:
    now = time.time() + 1e9
    return [e for e in log if e.published > (now if after is None else after)], now


def by_path(log: Any, after: Any) -> Any:
    names = [entry.path for entry in log]
    begin = names.index(after) + 1 if after in names else 0 if after == "" else len(log)
    return log[begin:], names[-1] if names else ""


def by_both(log: Any, after: Any) -> Any:
    begin = len(log) if after is None else log.index(after) + 1 if after else 0
    return log[begin:], log[-1] if log else ()


def last_changes(log: Any, after: Any) -> Any:
    return list({entry.path: entry for entry in later(log, after)}.values()), len(log)


async def cursor_async(log: Any, after: Any) -> Any:
    return later(log, after), len(log)


def never_ends(log: Any, after: Any) -> Any:
    while True:
        pass


CURSORS = Corpus(
    checks.answers_from_a_cursor,
    cursor_stub,
    right={
        "the solution": lambda log, after: (later(log, after), len(log)),
        "an opaque text": sealed,
        "tickets": tickets(),
        "uses the log up": uses_it_up,
        "by hand, as a list": by_hand,
        "a generator": yields,
        "an object, tuples": Half(),
        "numpy": with_numpy,
        "a dict as cursor": lambda log, after: (later(log, after, lambda pair: pair["at"]), {"at": len(log)}),
        "partial": functools.partial(lambda none, log, after: (later(log, after), len(log)), None),
        "one before": lambda log, after: (later(log, after, lambda place: place + 1), len(log) - 1),
    },
    wrong={
        "time stamps": (
            lambda log, after: ([e for e in log if e[0] > (1e9 if after is None else after)], newest(log)),
            "two updates may share one, and a clock may be set back. Here some were lost",
        ),
        "time stamps, again": (
            lambda log, after: ([e for e in log if e[0] >= (1e9 if after is None else after)], newest(log)),
            "so some came again",
        ),
        "the clock": (by_clock, "a cursor from the clock"),
        "a path": (by_path, "A path is no cursor"),
        "a path and a time": (by_both, "Time stamp and path are no cursor"),
        "ignores the cursor": (lambda log, after: (list(log), len(log)), "`after` is not looked at"),
        "does not move": (lambda log, after: (log[after or 0 :], after or 0), "always 0: it does not move"),
        "at the last": (lambda log, after: (later(log, after, lambda n: max(0, n - 1)), len(log)), "go on behind it"),
        "runs ahead": (lambda log, after: (later(log, after), len(log) + 1), "runs ahead"),
        "all for nobody": (lambda log, after: (log[after or 0 :], len(log)), "begins at now"),
        "0 is none": (lambda log, after: (log[after:] if after else [], len(log)), "Ask for `is None`"),
        "reversed": (lambda log, after: (later(log, after)[::-1], len(log)), "turned round"),
        "latest of each": (last_changes, "only the latest change"),
        "the newest": (lambda log, after: (later(log, after)[-1:], len(log)), "Only the newest"),
        "counts its answer": (lambda log, after: (later(log, after), len(later(log, after))), "of one answer"),
        "remembers": (remembers(), "must not remember"),
        "one at a time": (
            lambda log, after: (later(log, after)[:1], len(log) if after is None else min(after + 1, len(log))),
            "it gives 1 (file-a at 100), and should give 2 (file-a at 100, file-b at 100.5)",
        ),
        "sorted": (
            lambda log, after: (sorted(later(log, after)), len(log)),
            "it gives 2 (file-b at 99, file-a at 101), and should give 2 (file-a",
        ),
        "entries alone": (lambda log, after: later(log, after), "It gives two things"),
        "no return": (lambda log, after: print(end=""), "Is there a `return`?"),
        "paths": (
            lambda log, after: ([e.path for e in later(log, after)], len(log)),
            "it gives 2 ('file-a', 'file-b'), and should",
        ),
        "None as a place": (lambda log, after: (log[after], 1), "raised TypeError"),
        "the newest of none": (lambda log, after: (later(log, after), log[-1]), "raised IndexError"),
        "async": (cursor_async, "async def"),
        "for ever": (never_ends, "does not come to an end"),
    },
)

# ── the hold ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def hold_stub(archive: checks.Archive, after: int, wait: float) -> Any:
    """The exercise's empty server."""


def holder(
    *,
    early: bool = True,
    resumes: bool = True,
    holds: bool = True,
    ends: bool = True,
    catches: bool = True,
    times: float = 1.0,  # the hold
    constant: float | None = None,
    gives: Callable[[list[int]], Any] = lambda updates: updates,
    reads_again: bool = True,
    sleeps_first: float = 0.0,
    guesses: bool = False,
) -> Callable[[checks.Archive, int, float], Any]:
    """The waiting half of a server, or one of its mutants."""

    async def next_news(archive: checks.Archive, after: int, wait: float) -> Any:
        after = after if resumes else 0
        news = archive.subscribe()
        updates = await archive.read(after)
        if updates or not holds:
            return gives(updates)
        if not early:
            news = archive.subscribe()
        try:
            async with asyncio.timeout((constant or times * wait) if ends else None):
                await news.wait()
        except TimeoutError:
            if not catches:
                raise
            return []
        if guesses:
            return [after + 1]
        await asyncio.sleep(sleeps_first)
        return gives(await archive.read(after)) if reads_again else updates

    return next_news


async def by_wait_for(archive: checks.Archive, after: int, wait: float) -> tuple[int, ...]:
    """With a deadline, in a loop that ends with news, and a last look."""
    deadline = time.monotonic() + wait
    while True:
        news = archive.subscribe()
        updates = await archive.read(after)
        left = deadline - time.monotonic()
        if updates or left <= 0:
            return tuple(updates)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(news.wait(), left)


async def by_tasks(archive: checks.Archive, after: int, wait: float) -> list[int]:
    waiting = asyncio.ensure_future(archive.subscribe().wait())
    try:
        if updates := await archive.read(after):
            return updates
        done, _ = await asyncio.wait({waiting}, timeout=wait)
        return await archive.read(after) if done else []
    finally:
        waiting.cancel()


async def whole_in_a_timeout(archive: checks.Archive, after: int, wait: float) -> list[int]:
    """A time limit around all of it, reading included."""
    try:
        async with asyncio.timeout(wait):
            while True:
                news = archive.subscribe()
                if updates := await archive.read(after):
                    return updates
                await news.wait()
    except TimeoutError:
        return []


class Holding:
    async def __call__(self, archive: checks.Archive, after: int, wait: float) -> Any:
        return np.array(await holder()(archive, after, wait))


async def with_a_timer(archive: checks.Archive, after: int, wait: float) -> list[int]:
    """The event is set by a timer, too."""
    news = archive.subscribe()
    timer = asyncio.get_running_loop().call_later(wait, news.set)
    try:
        if not (updates := await archive.read(after)):
            await news.wait()
            updates = await archive.read(after)
        return updates
    finally:
        timer.cancel()


async def polls_inside(archive: checks.Archive, after: int, wait: float, pause: float = 0.05) -> list[int]:
    """A server whose "push" polls."""
    end = asyncio.get_running_loop().time() + wait
    while asyncio.get_running_loop().time() < end:
        if updates := await archive.read(after):
            return updates
        await asyncio.sleep(pause)
    return []


async def polls_now_and_then(archive: checks.Archive, after: int, wait: float) -> list[int]:
    """Waits for the event, 0.9 s at a time, and reads each time."""
    end = asyncio.get_running_loop().time() + wait
    while asyncio.get_running_loop().time() < end:
        news = archive.subscribe()
        if updates := await archive.read(after):
            return updates
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(news.wait(), 0.9)
    return []


async def polls_the_event(archive: checks.Archive, after: int, wait: float) -> list[int]:
    news = archive.subscribe()
    updates = await archive.read(after)
    for _ in range(int(100 * wait)):
        if updates or news.is_set():
            break
        await asyncio.sleep(0.01)
    return updates or await archive.read(after)


async def polls_the_head(archive: checks.Archive, after: int, wait: float) -> list[int]:
    for _ in range(int(100 * wait)):
        if archive._head > after:
            break
        await asyncio.sleep(0.01)
    return await archive.read(after)


async def blocks(archive: checks.Archive, after: int, wait: float) -> list[int]:
    while not (updates := await archive.read(after)):
        time.sleep(0.01)  # noqa: ASYNC251  # that is the mistake
    return updates


async def spins(archive: checks.Archive, after: int, wait: float) -> list[int]:
    news = archive.subscribe()
    while not news.is_set():
        pass
    return await archive.read(after)


async def reads_for_ever(archive: checks.Archive, after: int, wait: float) -> list[int]:
    while not (updates := await archive.read(after)):
        pass
    return updates


async def sleeps_the_whole_wait(archive: checks.Archive, after: int, wait: float) -> list[int]:
    if updates := await archive.read(after):
        return updates
    await asyncio.sleep(wait)
    return await archive.read(after)


async def subscribes_and_sleeps(archive: checks.Archive, after: int, wait: float) -> list[int]:
    archive.subscribe()
    return await sleeps_the_whole_wait(archive, after, wait)


async def from_now(archive: checks.Archive, after: int, wait: float) -> list[int]:
    """Begins at “now”: nothing is read before the waiting."""
    head = archive._head
    news = archive.subscribe()
    try:
        await asyncio.wait_for(news.wait(), wait)
    except TimeoutError:
        return []
    return await archive.read(head)


async def waits_first(archive: checks.Archive, after: int, wait: float) -> list[int]:
    """Waits before it has looked."""
    news = archive.subscribe()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(news.wait(), wait)
    return await archive.read(after)


def remembering_holder() -> Any:
    sent: set[int] = set()

    async def next_news(archive: checks.Archive, after: int, wait: float) -> list[int]:
        updates = [number for number in await holder()(archive, after, wait) if number not in sent]
        sent.update(updates)
        return updates

    return next_news


async def streams(archive: checks.Archive, after: int, wait: float) -> Any:
    async def numbers() -> Any:
        for number in await archive.read(after):
            yield number

    return numbers()


async def misspelt(archive: checks.Archive, after: int, wait: float) -> list[int]:
    return await archive.reed(after)  # type: ignore[attr-defined,no-any-return]  # that is the slip


def hold_not_async(archive: checks.Archive, after: int, wait: float) -> list[int]:
    return [after + 1]


HOLDS = Corpus(
    checks.holds_without_a_hole,
    hold_stub,
    right={
        "the solution": holder(),
        "wait_for, a deadline, a tuple": by_wait_for,
        "tasks": by_tasks,
        "a time limit around all": whole_in_a_timeout,
        "an object, numpy": Holding(),
        "a timer": with_a_timer,
        "a generator": holder(gives=lambda updates: (number for number in updates)),
        "a range": holder(gives=lambda updates: range(updates[0], updates[-1] + 1) if updates else range(0)),
        "a plain def that gives a coroutine": lambda archive, after, wait: holder()(archive, after, wait),
        "partial": functools.partial(holder()),
    },
    wrong={
        "subscribes late": (holder(early=False), "A lost wake-up: published while it was reading, update"),
        "from the start": (holder(resumes=False), "that came before. Read after `after`"),
        "from now": (from_now, "It begins at “now”"),
        "waits first": (waits_first, "as soon as there is some; update 1 waited"),
        "does not hold": (holder(holds=False), "empty after 0.04 s instead of 6: hold"),
        "guesses the number": (holder(guesses=True), "and has not read it: more than one"),
        "holds for ever": (holder(ends=False), "It holds for too long"),
        "longer": (holder(times=1.4), "empty after 14 s instead of 10"),
        "shorter": (holder(times=0.5), "instead of 10: hold"),
        "a constant": (holder(constant=10.0), "empty after 10 s instead of 6"),
        "raises at the end": (holder(catches=False), "it raised TimeoutError, as"),
        "only the newest": (holder(gives=lambda updates: updates[-1:]), "It had read [1, 2, 3]: give all of it"),
        "only the oldest": (holder(gives=lambda updates: updates[:1]), "it gives [1]. It had read [1, 2, 3]"),
        "reversed": (holder(gives=lambda updates: updates[::-1]), "not in the order"),
        "gives what it read before": (holder(reads_again=False), "when there was news: read again"),
        "one late": (holder(sleeps_first=0.5), "waited 0.54 s"),
        "no return": (
            holder(gives=lambda updates: None),
            "It gives None, and should give a list. Is there a `return`?",
        ),
        "one number": (holder(gives=lambda updates: updates[0]), "It gives 1, and should give a list"),
        "texts": (holder(gives=lambda updates: list(map(str, updates))), "no numbers of updates"),
        "made up": (holder(gives=lambda updates: [*updates, 99]), "nothing like that has been published"),
        "polls": (polls_inside, "polling, moved into the server"),
        "polls now and then": (polls_now_and_then, "polling, moved into the server"),
        "polls the event": (polls_the_event, "looked"),
        "polls the head": (polls_the_head, "never called `archive.subscribe()`"),
        "reads for ever": (reads_for_ever, "polling, moved into the server"),
        "time.sleep": (blocks, "waits by `time.sleep(0.01)`"),
        "spins": (spins, "does not come to an end"),
        "sleeps": (sleeps_the_whole_wait, "how does it learn of news?"),
        "subscribes and sleeps": (subscribes_and_sleeps, "as soon as there is some"),
        "remembers": (remembering_holder(), "It had read [7]"),
        "streams": (streams, "It is a generator"),
        "a wrong name": (misspelt, "has no attribute 'reed'"),
        "a plain def": (hold_not_async, "It is a plain `def`"),
    },
)

CORPORA = [QUIET, CLIENTS, CURSORS, HOLDS]
test_a_right_answer_passes, test_a_wrong_answer_is_told_why, test_no_answer_is_told_so = judging(CORPORA)


def test_the_named_mistakes_of_a_cursor_differ() -> None:
    """No two of the mistakes that are told apart give the same answers, so each can be named."""
    came: dict[str, str] = {}
    for text, ways in checks.long_polling.CURSOR_MISTAKES.items():
        for way in ways:
            given = repr([question.came for question in _questioned(way)[0]])
            assert came.setdefault(given, text) == text


@pytest.mark.parametrize("number", range(3))
def test_a_check_judges_the_same_again(number: int) -> None:
    """Virtual time leaves nothing to chance: the same answer gets the same verdict, to the letter."""
    answer = (finder(), finder(first=10), holder(early=False))[number]
    check: Callable[[Any], checks.Verdict] = (
        checks.long_polling_client,
        checks.long_polling_client,
        checks.holds_without_a_hole,
    )[number]
    assert check(answer).text == check(answer).text
