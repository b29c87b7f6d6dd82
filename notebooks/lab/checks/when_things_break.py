"""The checks of notebook 07: when silence is death, and how long to wait before the next attempt.

a function ─▶ tried on cases that tell the mistakes apart ─▶ Verdict
"""

import itertools
from collections.abc import Callable, Sequence

from lab.checks.verdict import Verdict, compared
from lab.clients.connections import SILENCE

LASTED = 10.0  # s after which a stream was one
Sign = tuple[float, str]
Draw = Callable[[float, float], float]


def quarter(low: float, high: float) -> float:
    """A number between the two, always at the first quarter: what a check can foretell."""
    return low + (high - low) / 4


def _dead_at(signs: Sequence[Sign], heartbeat: float) -> float:
    last, limit = 0.0, SILENCE * heartbeat
    for at, _ in signs:
        if at - last > limit:
            break
        last = at
    return last + limit


def _of_updates(signs: Sequence[Sign], heartbeat: float) -> float:
    return _dead_at([sign for sign in signs if sign[1] == "update"], heartbeat)


def _from_the_start(signs: Sequence[Sign], heartbeat: float) -> float:
    return SILENCE * heartbeat


def _from_the_first(signs: Sequence[Sign], heartbeat: float) -> float:
    first = signs[0][0] if signs else 0.0
    return first + _dead_at([(at - first, kind) for at, kind in signs], heartbeat)


def _last_silence(signs: Sequence[Sign], heartbeat: float) -> float:
    limit, moments = SILENCE * heartbeat, [0.0, *(at for at, _ in signs)]
    return max((a for a, b in itertools.pairwise(moments) if b - a > limit), default=moments[-1]) + limit


def _after_the_last(signs: Sequence[Sign], heartbeat: float) -> float:
    return (signs[-1][0] if signs else 0.0) + SILENCE * heartbeat


def _one_heartbeat(signs: Sequence[Sign], heartbeat: float) -> float:
    last = 0.0
    for at, _ in signs:
        if at - last > heartbeat:
            break
        last = at
    return last + heartbeat


SILENCES: list[tuple[list[Sign], float]] = [
    ([(1.0, "update"), (14.0, "heartbeat"), (29.0, "heartbeat")], 15.0),
    ([], 4.0),
    ([(2.0, "update"), (3.0, "update"), (40.0, "update")], 4.0),
    ([(2.0, "heartbeat"), (4.0, "heartbeat"), (6.0, "heartbeat"), (8.0, "heartbeat")], 2.0),
    ([(4.0, "update"), (13.0, "heartbeat"), (14.0, "update")], 4.0),
    ([(30.0, "heartbeat"), (31.0, "update")], 4.0),
    ([(1.0, "heartbeat"), (20.0, "update"), (21.0, "heartbeat"), (60.0, "update")], 4.0),
]


def watchdog(dead_at: Callable[[list[Sign], float], float]) -> Verdict:
    """Exercise: `dead_at(signs, heartbeat)` gives the moment (s) at which a stream, opened at 0, is taken for dead."""
    return compared(
        dead_at,
        _dead_at,
        {
            "It counts from the opening of the connection: each sign of life starts the count anew.": _from_the_start,
            "It listens to updates only: a heartbeat is there to be a sign of life.": _of_updates,
            "The count begins when the connection opens: one that never says anything is dead, too.": _from_the_first,
            "The first silence that is long enough is death: what comes after it finds nobody.": _last_silence,
            "It looks at the last sign only: before that there may have been a silence long enough.": _after_the_last,
            "One heartbeat of silence is a heartbeat that is late: wait for 2.5 of them.": _one_heartbeat,
        },
        SILENCES,
        "Any sign of life starts the count anew, and 2.5 heartbeats without one are death.",
    )


def _pauses(lasted: Sequence[float], base: float, cap: float, draw: Draw) -> list[float]:
    pauses, failures = list[float](), 0
    for seconds in lasted:
        failures = 0 if seconds >= LASTED else failures
        pauses.append(draw(0.0, min(cap, base * 2.0**failures)))
        failures += 1
    return pauses


def _uncapped(lasted: Sequence[float], base: float, cap: float, draw: Draw) -> list[float]:
    return _pauses(lasted, base, float("inf"), draw)


def _equal(lasted: Sequence[float], base: float, cap: float, draw: Draw) -> list[float]:
    return _pauses(lasted, base, cap, lambda low, high: draw(high / 2, high))


def _none(lasted: Sequence[float], base: float, cap: float, draw: Draw) -> list[float]:
    return _pauses(lasted, base, cap, lambda low, high: high)


def _never_reset(lasted: Sequence[float], base: float, cap: float, draw: Draw) -> list[float]:
    return _pauses([0.0] * len(lasted), base, cap, draw)


def _always_reset(lasted: Sequence[float], base: float, cap: float, draw: Draw) -> list[float]:
    return _pauses([0.0 if not seconds else LASTED for seconds in lasted], base, cap, draw)


def _ahead(lasted: Sequence[float], base: float, cap: float, draw: Draw) -> list[float]:
    return _pauses(lasted, 2 * base, cap, draw)


def _capped_late(lasted: Sequence[float], base: float, cap: float, draw: Draw) -> list[float]:
    return [min(cap, pause) for pause in _uncapped(lasted, base, cap, draw)]


STREAKS = [
    ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1.0, 30.0, quarter),
    ([0.0, 0.0, 60.0, 0.0], 2.0, 10.0, quarter),
    ([0.0, 3.0, 0.0, 10.0, 0.5], 1.0, 30.0, quarter),
]


def reconnect_schedule(pauses: Callable[[list[float], float, float, Draw], list[float]]) -> Verdict:
    """Exercise: `pauses(lasted, base, cap, draw)` gives the pause (s) after each stream, which lasted so long."""
    return compared(
        pauses,
        _pauses,
        {
            "There is no cap: after an outage of an hour nobody comes back for an hour.": _uncapped,
            "The cap is for the ceiling, before the draw: capped after it, most of those who waited long come back in "
            "the same instant.": _capped_late,
            "That is equal jitter, drawn from the upper half: the lower half of the time stays empty.": _equal,
            "There is no jitter: who broke together comes back together.": _none,
            "A stream that lasted starts the count anew: this one has paid for old failures ever since.": _never_reset,
            "A stream of a few seconds was no recovery: only one of 10 s or more starts the count anew.": _always_reset,
            "The first pause is drawn from [0, base]: the exponent counts the failures before this one.": _ahead,
        },
        STREAKS,
        "Full jitter below a capped, doubling ceiling, and a stream that lasted starts anew.",
    )
