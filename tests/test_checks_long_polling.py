"""The checks of notebook 02: each accepts the solution, rejects the empty stub kindly, and names each mistake."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from lab import checks
from lab.bench.experiment import ClientLog
from tests.support_checks import poller


async def stub_client(url: str, log: ClientLog) -> None:
    """The exercise's empty client."""


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
    assert repr(checks.long_polling_client(stub_client)).startswith("Not yet. This is still the empty stub")
    assert repr(checks.holds_without_a_hole(stub_hold)).startswith("Not yet. This is still the empty stub")


SOLUTIONS: list[tuple[Callable[..., checks.Verdict], Callable[..., Any]]] = [
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


MUTANTS: list[tuple[Callable[..., checks.Verdict], Callable[..., Any], str]] = [
    (checks.quiet_requests, lambda clients, hold, rtt: 1 / (hold + rtt), "one client's"),
    (checks.quiet_requests, lambda clients, hold, rtt: clients / hold, "gap between"),
    (checks.quiet_requests, lambda clients, hold, rtt: clients / rtt, "dense news"),
    (checks.quiet_requests, lambda clients, hold, rtt: clients * (hold + rtt), "how many there are in a second"),
    (checks.long_polling_client, poller(pause=0.0, wait=20, cursor=lambda first, last: None), "each request begins"),
    (checks.long_polling_client, poller(pause=0.0, wait=0), "is it held at all"),
    (checks.long_polling_client, poller(pause=5.0, wait=20), "the server should do the waiting"),
    (checks.long_polling_client, poller(pause=0.0, wait=20, looks_at_status=False), "stopped at the 503"),
    (checks.long_polling_client, poller(pause=2.0, wait=20, heeds=None), "heed Retry-After"),
    (checks.long_polling_client, poller(pause=0.0, wait=20, heeds=None), "heed Retry-After"),
    (checks.long_polling_client, poller(pause=0.0, wait=20, starts_over=True), "started over"),
    (
        checks.long_polling_client,
        poller(pause=0.0, wait=20, cursor=lambda first, last: f"{time.time()}", heeds=None),
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
