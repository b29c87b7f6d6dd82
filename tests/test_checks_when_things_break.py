"""The checks of notebook 07: they accept every right answer, and tell each kind of wrong one what is wrong."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

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


def by_loop(signs: Signs, heartbeat: float) -> float:
    alive_until = 2.5 * heartbeat
    for at, _ in signs:
        if at > alive_until:
            return alive_until
        alive_until = at + 2.5 * heartbeat
    return alive_until


def by_recursion(signs: Signs, heartbeat: float, last: float = 0.0) -> float:
    if signs and signs[0][0] - last <= 2.5 * heartbeat:
        return by_recursion(signs[1:], heartbeat, signs[0][0])
    return last + 2.5 * heartbeat


def by_using_up(signs: Signs, heartbeat: float) -> float:
    last = 0.0
    while signs and signs[0][0] <= last + 2.5 * heartbeat:
        last = signs.pop(0)[0]
    return last + 2.5 * heartbeat


def by_numpy(signs: Signs, heartbeat: float) -> Any:
    moments = np.array([0.0, *(at for at, _ in signs), np.inf])
    return moments[np.argmax(np.diff(moments) > 2.5 * heartbeat)] + 2.5 * heartbeat


def by_fractions(signs: Signs, heartbeat: float) -> Fraction:
    return Fraction(dead()(signs, heartbeat))


def from_the_first(signs: Signs, heartbeat: float) -> float:
    moments = [at for at, _ in signs] or [0.0]
    gaps = itertools.pairwise(moments)
    return next((a for a, b in gaps if b - a > 2.5 * heartbeat), moments[-1]) + 2.5 * heartbeat


def the_last_silence(signs: Signs, heartbeat: float) -> float:
    since, found = 0.0, None
    for at, _ in signs:
        if at - since > 2.5 * heartbeat:
            found = since
        since = at
    return (since if found is None else found) + 2.5 * heartbeat


class Watchdog:
    """An answer that is an object."""

    def __call__(self, signs: Signs, heartbeat: float) -> float:
        return by_loop(signs, heartbeat)


def by_generator(lasted: list[float], base: float, cap: float, draw: Draw) -> Any:
    return (pause for pause in schedule()(lasted, base, cap, draw))


def by_doubling(lasted: list[float], base: float, cap: float, draw: Draw) -> list[float]:
    ceiling, pauses = base, []
    for seconds in lasted:
        if seconds >= 10:
            ceiling = base
        pauses.append(draw(0, min(ceiling, cap)))
        ceiling = min(2 * ceiling, 2 * cap)
    return pauses


def by_bits(lasted: list[float], base: float, cap: float, draw: Draw) -> tuple[float, ...]:
    failed, pauses = 0, tuple[float, ...]()
    for seconds in lasted:
        failed = 0 if not seconds < 10 else failed
        pauses += (draw(0.0, min(base * (1 << failed), cap)),)
        failed += 1
    return pauses


def by_array(lasted: list[float], base: float, cap: float, draw: Draw) -> Any:
    return np.array(schedule()(lasted, base, cap, draw))


def by_names(lasted: list[float], base: float, cap: float, draw: Draw) -> list[float]:
    return by_doubling(lasted=lasted, base=base, cap=cap, draw=lambda low, high: float(draw(low, high)))


def capped_late(lasted: list[float], base: float, cap: float, draw: Draw) -> list[float]:
    return [min(cap, pause) for pause in schedule(capped=False)(lasted, base, cap, draw)]


class Schedule:
    """An answer that is an object."""

    def __call__(self, lasted: list[float], base: float, cap: float, draw: Draw) -> list[float]:
        return by_doubling(lasted, base, cap, draw)


CORPORA = [
    Corpus(
        checks.watchdog,
        empty_watchdog,
        {
            "right": dead(),
            "a loop": by_loop,
            "a recursion": by_recursion,
            "uses its list up": by_using_up,
            "numpy": by_numpy,
            "a fraction": by_fractions,
            "an object": Watchdog(),
        },
        {
            "from the start": (dead(from_start=True), "from the opening of the connection"),
            "updates only": (dead(updates_only=True), "updates only"),
            "the last sign": (dead(last=True), "last sign only"),
            "from the first sign": (from_the_first, "begins when the connection opens"),
            "the last silence": (the_last_silence, "The first silence that is long enough"),
            "one heartbeat": (dead(of=1), "One heartbeat"),
            "no return": (no_return, "Is there a `return`?"),
            "too late": (dead(of=3), "should give"),
            "too early": (dead(of=2), "should give"),
        },
    ),
    Corpus(
        checks.reconnect_schedule,
        empty_schedule,
        {
            "right": schedule(),
            "a generator": by_generator,
            "doubles a ceiling": by_doubling,
            "bits, a tuple": by_bits,
            "an array": by_array,
            "by names": by_names,
            "an object": Schedule(),
        },
        {
            "no cap": (schedule(capped=False), "no cap"),
            "a cap on what was drawn": (capped_late, "before the draw"),
            "equal jitter": (schedule(low=0.5), "equal jitter"),
            "a draw from another range": (lambda lasted, *rest: [1.0 for _ in lasted], "30, quarter it gives"),
            "no jitter": (schedule(jitter=False), "no jitter"),
            "never reset": (schedule(resets=False), "paid for old failures"),
            "always reset": (schedule(after=0.1), "was no recovery"),
            "one ahead": (schedule(first=1), "exponent"),
            "all alike": (lambda lasted, base, cap, draw: [draw(0.0, cap) for _ in lasted], "should give"),
        },
    ),
]

test_right, test_wrong, test_no_answer = judging(CORPORA)
