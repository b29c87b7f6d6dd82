"""The checks of notebook 07: they accept every right answer, and tell each kind of wrong one what is wrong."""

import itertools
from collections.abc import Callable

from lab import checks
from tests.support_checks import Corpus, judging

Signs = list[tuple[float, str]]
Draw = Callable[[float, float], float]


def dead(
    *, of: float = 2.5, from_start: bool = False, updates_only: bool = False, last: bool = False
) -> Callable[[Signs, float], float]:
    """The solution, or one of its mutants."""

    def dead_at(signs: Signs, heartbeat: float) -> float:
        moments = [0.0] + [at for at, kind in signs if kind == "update" or not updates_only]
        if from_start:
            return of * heartbeat
        if last:
            return moments[-1] + of * heartbeat
        gaps = itertools.pairwise(moments)
        return next((a for a, b in gaps if b - a > of * heartbeat), moments[-1]) + of * heartbeat

    return dead_at


def schedule(
    *,
    capped: bool = True,
    low: float = 0.0,
    jitter: bool = True,
    resets: bool = True,
    after: float = 10,
    first: int = 0,
) -> Callable[[list[float], float, float, Draw], list[float]]:
    """The solution, or one of its mutants."""

    def pauses(lasted: list[float], base: float, cap: float, draw: Draw) -> list[float]:
        given, failures = [], first
        for seconds in lasted:
            if resets and seconds >= after:
                failures = first
            ceiling = min(cap, base * 2**failures) if capped else base * 2**failures
            given.append(draw(low * ceiling, ceiling) if jitter else ceiling)
            failures += 1
        return given

    return pauses


def no_return(signs: Signs, heartbeat: float) -> None:
    dead()(signs, heartbeat)


def empty_watchdog(signs: Signs, heartbeat: float) -> None: ...


def empty_schedule(lasted: list[float], base: float, cap: float, draw: Draw) -> None: ...


CORPORA = [
    Corpus(
        checks.watchdog,
        empty_watchdog,
        {"right": dead()},
        {
            "from the start": (dead(from_start=True), "from the opening of the connection"),
            "updates only": (dead(updates_only=True), "updates only"),
            "the last sign": (dead(last=True), "last sign only"),
            "one heartbeat": (dead(of=1), "One heartbeat"),
            "no return": (no_return, "Is there a `return`?"),
            "too late": (dead(of=3), "should give"),
        },
    ),
    Corpus(
        checks.reconnect_schedule,
        empty_schedule,
        {"right": schedule()},
        {
            "no cap": (schedule(capped=False), "no cap"),
            "equal jitter": (schedule(low=0.5), "equal jitter"),
            "no jitter": (schedule(jitter=False), "no jitter"),
            "never reset": (schedule(resets=False), "paid for old failures"),
            "always reset": (schedule(after=0.1), "was no recovery"),
            "one ahead": (schedule(first=1), "exponent"),
        },
    ),
]

test_right, test_wrong, test_no_answer = judging(CORPORA)
