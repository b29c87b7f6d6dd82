"""The exercises' checks: each accepts the solution, rejects the empty stub kindly, and names each mistake."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lab import checks
from lab.bench.experiment import HTTP, ClientLog


def poller(
    *,
    cursor: Callable[[str, str], str | None] = lambda first, last: last,
    moves: bool = True,
    looks_at_status: bool = True,
    heeds: bool = True,
    starts_over: bool = False,
    pause: float = 5.0,
    **question: float,
) -> Callable[[str, ClientLog], Any]:
    """The solution, or one of its mutants."""

    async def client(url: str, log: ClientLog) -> None:
        last = log.cursor
        async with httpx.AsyncClient(**HTTP) as http:
            while True:
                wait = pause
                with log.request():
                    after = cursor(log.cursor, last)
                    asked = question | ({"after": after} if after is not None else {})
                    response = await http.get(f"{url}/updates", params=asked)
                    if response.status_code == 200 or not looks_at_status:
                        for update in response.json()["updates"]:
                            log.deliver(update)
                        last = response.json()["cursor"] if moves else last
                    elif heeds and response.status_code == 503:
                        wait = float(response.headers["Retry-After"])
                        last = log.cursor if starts_over else last
                await asyncio.sleep(wait)

    return client


async def stub_client(url: str, log: ClientLog) -> None:
    """The exercise's empty client."""


async def silent_client(url: str, log: ClientLog) -> None:
    """A client that asks without saying so."""
    async with httpx.AsyncClient(**HTTP) as http:
        await http.get(f"{url}/updates")


def stub(*_: Any) -> Any:
    """An exercise's empty function."""


async def stub_hold(archive: checks.Archive, after: int, wait: float) -> Any:
    """The exercise's empty server."""


def holder(
    *, early: bool = True, resumes: bool = True, late_start: bool = False, holds: bool = True, ends: bool = True
) -> Callable[[checks.Archive, int, float], Any]:
    """The waiting half of a server, or one of its mutants."""

    async def next_news(archive: checks.Archive, after: int, wait: float) -> list[int]:
        after = archive.head if late_start else after if resumes else 0
        news = archive.subscribe()
        updates = await archive.read(after)
        if updates or not holds:
            return updates
        if not early:
            news = archive.subscribe()
        try:
            async with asyncio.timeout(wait if ends else None):
                await news.wait()
        except TimeoutError:
            return []
        return await archive.read(after)

    return next_news


async def polls_inside(archive: checks.Archive, after: int, wait: float) -> list[int]:
    """A server whose "push" polls."""
    end = asyncio.get_running_loop().time() + wait
    while asyncio.get_running_loop().time() < end:
        if updates := await archive.read(after):
            return updates
        await asyncio.sleep(0.05)
    return []


def answers(
    cursor: Callable[[Any], Any] = len,
    later: Callable[[Any, Any], list[Any]] = lambda log, after: list(log[after or 0 :]),
) -> Callable[[Any, Any], tuple[list[Any], Any]]:
    """The cursor's half of a server, or one of its mutants."""
    return lambda log, after: (later(log, after), cursor(log))


def remembering() -> Callable[[Any, Any], tuple[list[Any], Any]]:
    """A server that remembers what it has sent."""
    sent = list[Any]()

    def answer(log: Any, after: Any) -> tuple[list[Any], Any]:
        new = [entry for entry in log if entry not in sent]
        sent.extend(new)
        return new, None

    return answer


def newest(log: Any) -> float:
    return float(log[-1].published)


@pytest.mark.parametrize(
    "check",
    [
        checks.count_faults,
        checks.delays_from_plan,
        checks.longest_interval,
        checks.jittered,
        checks.quiet_requests,
        checks.answers_from_a_cursor,
    ],
)
def test_an_untouched_stub_fails_kindly(check: Callable[..., checks.Verdict]) -> None:
    """An empty stub does not pass, and is told what to do next."""
    verdict = check(stub)
    assert not verdict
    assert repr(verdict).startswith("Not yet. This is still the empty stub")


def test_an_untouched_client_fails_kindly() -> None:
    """An empty client does not pass, and is told what to do next."""
    for check in (checks.polling_client, checks.long_polling_client):
        assert repr(check(stub_client)).startswith("Not yet. This is still the empty stub")
    assert repr(checks.holds_without_a_hole(stub_hold)).startswith("Not yet. This is still the empty stub")


SOLUTIONS: list[tuple[Callable[..., checks.Verdict], Callable[..., Any]]] = [
    (checks.count_faults, lambda p, r: (len(set(p) - set(r)), len(r) - len(set(r)))),
    (checks.delays_from_plan, lambda planned, sent, answered: [a - p for a, p in zip(answered, planned, strict=True)]),
    (checks.longest_interval, lambda budget, transit: (budget - transit) / 0.95),
    (checks.jittered, lambda interval, rng: interval * rng.uniform(0.9, 1.1)),
    (checks.polling_client, poller()),
    (checks.quiet_requests, lambda clients, hold, rtt: clients / (hold + rtt)),
    (checks.long_polling_client, poller(pause=0.0, wait=20)),
    (checks.answers_from_a_cursor, answers()),
    (checks.holds_without_a_hole, holder()),
]


@pytest.mark.parametrize(("check", "solution"), SOLUTIONS)
def test_a_solution_passes(check: Callable[..., checks.Verdict], solution: Callable[..., Any]) -> None:
    """A right answer passes."""
    verdict = check(solution)
    assert verdict, repr(verdict)
    assert repr(verdict).startswith("✓ ")


def repeats(received: list[int]) -> int:
    return sum(received.count(seq) > 1 for seq in set(received))


MUTANTS: list[tuple[Callable[..., checks.Verdict], Callable[..., Any], str]] = [
    (checks.count_faults, lambda p, r: (max(0, len(p) - len(r)), len(r) - len(set(r))), "comparing lengths"),
    (checks.count_faults, lambda p, r: (len(set(p) - set(r)), 0), "in a set"),
    (checks.count_faults, lambda p, r: (len(set(p) - set(r)), repeats(r)), "three times"),
    (checks.count_faults, lambda p, r: (7, 7), "should give"),
    (checks.count_faults, lambda p, r: p[9], "raised IndexError"),
    (checks.delays_from_plan, lambda p, s, a: [x - y for x, y in zip(a, s, strict=True)], "from sending"),
    (checks.delays_from_plan, lambda p, s, a: [x - y for x, y in zip(s, p, strict=True)], "how late each question"),
    (checks.longest_interval, lambda b, d: 2 * (b - d), "*mean*"),
    (checks.longest_interval, lambda b, d: b / 0.95, "way back is missing"),
    (checks.longest_interval, lambda b, d: (b - 2 * d) / 0.95, "not the round trip"),
    (checks.longest_interval, lambda b, d: b - d, "*all* updates"),
    (checks.jittered, lambda interval, rng: interval, "herd stays together"),
    (checks.jittered, lambda interval, rng: interval * rng.uniform(1, 1.1), "only ever waits longer"),
    (checks.jittered, lambda interval, rng: interval * rng.uniform(0, 1), "full jitter"),
    (checks.jittered, lambda interval, rng: interval * rng.uniform(0.8, 1.2), "should fill 9 to 11"),
    (checks.jittered, lambda interval, rng: interval * random.uniform(0.9, 1.1), "from `rng`"),
    (checks.jittered, lambda interval, rng: "soon", "number of seconds"),
    (checks.polling_client, poller(cursor=lambda first, last: None), "begins at “now”"),
    (checks.polling_client, poller(moves=False), "came again"),
    (checks.polling_client, poller(cursor=lambda first, last: "0"), "came again"),
    (checks.polling_client, poller(looks_at_status=False), "stopped at the 503"),
    (checks.polling_client, poller(heeds=False), "heed Retry-After"),
    (checks.polling_client, poller(cursor=lambda first, last: f"{time.time()}"), "a cursor is opaque"),
    (checks.polling_client, poller(starts_over=True), "started over"),
    (checks.polling_client, poller(pause=0.0), "pause missing"),
    (checks.polling_client, poller(pause=15.0), "is the pause 5 s"),
    (checks.polling_client, silent_client, "no request inside"),
    (checks.quiet_requests, lambda clients, hold, rtt: 1 / (hold + rtt), "one client's"),
    (checks.quiet_requests, lambda clients, hold, rtt: clients / hold, "gap between"),
    (checks.quiet_requests, lambda clients, hold, rtt: clients / rtt, "dense news"),
    (checks.quiet_requests, lambda clients, hold, rtt: clients * (hold + rtt), "how many there are in a second"),
    (checks.long_polling_client, poller(pause=0.0, wait=20, cursor=lambda first, last: None), "each request begins"),
    (checks.long_polling_client, poller(pause=0.0, wait=0), "is it held at all"),
    (checks.long_polling_client, poller(pause=5.0, wait=20), "the server should do the waiting"),
    (checks.long_polling_client, poller(pause=0.0, wait=20, looks_at_status=False), "stopped at the 503"),
    (checks.long_polling_client, poller(pause=2.0, wait=20, heeds=False), "heed Retry-After"),
    (checks.long_polling_client, poller(pause=0.0, wait=20, heeds=False), "is it held at all"),
    (checks.long_polling_client, poller(pause=0.0, wait=20, starts_over=True), "started over"),
    (
        checks.long_polling_client,
        poller(pause=0.0, wait=20, cursor=lambda first, last: f"{time.time()}", heeds=False),
        "a cursor is opaque",
    ),
    (checks.answers_from_a_cursor, answers(newest, lambda log, t: [e for e in log if e[0] > (t or 0)]), "time stamp"),
    (checks.answers_from_a_cursor, answers(newest, lambda log, t: [e for e in log if e[0] >= (t or 0)]), "not at it"),
    (
        checks.answers_from_a_cursor,
        answers(lambda log: time.time(), lambda log, t: [e for e in log if e[0] > (t or 0)]),
        "from the clock",
    ),
    (checks.answers_from_a_cursor, answers(len, lambda log, after: list(log)), "`after` is not looked at"),
    (checks.answers_from_a_cursor, answers(len, lambda log, after: list(log[max(0, (after or 0) - 1) :])), "not at it"),
    (checks.answers_from_a_cursor, remembering(), "must not remember"),
    (checks.answers_from_a_cursor, answers(lambda log: len(log) + 1), "run ahead"),
    (checks.answers_from_a_cursor, lambda log, after: log, "It gives two things"),
    (checks.answers_from_a_cursor, lambda log, after: (log[after], 1), "It raised TypeError"),
    (checks.holds_without_a_hole, holder(early=False), "A lost wake-up"),
    (checks.holds_without_a_hole, holder(resumes=False), "came again"),
    (checks.holds_without_a_hole, holder(late_start=True), "were lost"),
    (checks.holds_without_a_hole, holder(holds=False), "instead of 10"),
    (checks.holds_without_a_hole, holder(ends=False), "holds for ever"),
    (checks.holds_without_a_hole, polls_inside, "polling, moved into the server"),
]


@pytest.mark.parametrize(("check", "mutant", "words"), MUTANTS, ids=[words for _, _, words in MUTANTS])
def test_a_mistake_is_named(check: Callable[..., checks.Verdict], mutant: Callable[..., Any], words: str) -> None:
    """Each wrong answer is rejected, with a sentence that says which mistake it looks like."""
    verdict = check(mutant)
    assert not verdict
    assert words in verdict.text
