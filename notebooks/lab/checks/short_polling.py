"""The checks of notebook 01: an interval for a budget, jitter, and a client that polls."""

import math
import random
import statistics
from collections.abc import Callable
from typing import Any

from lab.bench.experiment import Client
from lab.checks.bounded import bounded
from lab.checks.overload import INTERVAL, Evidence, pulling_client, usual_pause
from lab.checks.values import plain, shown
from lab.checks.verdict import Verdict, compared, judged
from servers import short_polling


def longest_interval(function: Callable[[float, float], float]) -> Verdict:
    """Exercise: `longest_interval(budget, transit)`: the longest T with 95 % of the updates within `budget`."""
    mistakes: dict[str, Callable[..., Any]] = {
        "With this interval the *mean* delay keeps the budget; almost half of the updates do not.": (
            lambda budget, transit: 2 * (budget - transit)
        ),
        "The answer's way back is missing: 95 % are within 0.95 T + d, not within 0.95 T.": (
            lambda budget, transit: budget / 0.95
        ),
        "The delay counts from the publication, so only the way back counts: d, not the round trip.": (
            lambda budget, transit: (budget - 2 * transit) / 0.95
        ),
        "With this interval *all* updates keep the budget, the worst included; 95 % may take a longer one.": (
            lambda budget, transit: budget - transit
        ),
    }
    cases = [(1.0, 0.0), (2.0, 0.1), (30.0, 0.025)]
    praise = "0.95 T + d is the budget, solved for T."
    return compared(function, lambda budget, transit: (budget - transit) / 0.95, mistakes, cases, praise)


INTERVALS = (10.0, 0.5, 60.0)  # s
DRAWS = 2000  # for each of them
OFF = 0.0065  # of the interval: 5 standard deviations of the mean of an even draw
LUMPS = 100  # different ones among them; with so few the herd stays in lumps


@judged
def jittered(function: Callable[[float, random.Random], float]) -> Verdict:
    """Exercise: `pause(interval, rng)` draws a pause from interval ± 10 %, with the generator that it is given."""
    first, again = bounded(lambda: [_draws(function, random.Random(1)) for _ in range(2)])
    for interval, drawn in first.items():
        if odd := [pause for pause in drawn if not _is_number(pause)]:
            hint = " Is there a `return`?" if odd[0] is None else ""
            return Verdict(False, f"For an interval of {interval:g} s it gives {shown(odd[0])}, no number.{hint}")
    spans = {interval: (min(drawn), max(drawn)) for interval, drawn in first.items()}
    if fault := _misses(spans) or _lumps(first) or _leans(first):
        return Verdict(False, fault)
    if first != again:
        return Verdict(False, "The same seed gives other pauses: draw from `rng`, not from another generator.")
    return Verdict(True, "Spread on both sides of every interval, the mean kept, and repeatable.")


def _draws(function: Callable[[float, random.Random], float], rng: random.Random) -> dict[float, list[Any]]:
    drawn: dict[float, list[Any]] = {}
    for interval in INTERVALS:
        drawn[interval] = [plain(function(interval, rng)) for _ in range(DRAWS)]
    return drawn


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _misses(spans: dict[float, tuple[float, float]]) -> str | None:
    """What is wrong with the least and the greatest pause for each interval, if something is."""
    parts = {i: (low / i, high / i) for i, (low, high) in spans.items()}
    off = [i for i, (low, high) in parts.items() if not (0.899 < low < 0.909 and 1.091 < high < 1.101)]
    if not off:
        return None
    interval, (low, high) = off[0], spans[off[0]]
    came = f"For an interval of {interval:g} s the pauses lie between {low:.3g} and {high:.3g} s"
    if all(low == high for low, high in spans.values()):
        return "For each interval all pauses are equal: the herd stays together."
    if all(low > -0.101 and high < 0.101 for low, high in parts.values()):
        return f"{came}: that is the deviation alone; the interval itself is missing."
    lows, highs = {round(low, 2) for low, _ in spans.values()}, {round(high, 2) for _, high in spans.values()}
    if len(lows) == len(highs) == 1:
        return f"{came}, and so they do for every other: they do not depend on `interval`."
    widths = {round(high - low, 2) for low, high in spans.values()}
    if len(widths) == 1:
        return f"{came}: ± {widths.pop() / 2:g} s whatever the interval is, not ± 10 % of it."
    if all(1 <= low < 1.05 for low, _ in parts.values()):
        return f"{came}: it only ever waits longer, and the mean grows. Draw on both sides."
    if all(0.95 < high <= 1 for _, high in parts.values()):
        return f"{came}: it only ever waits less, and asks more often than it should. Draw on both sides."
    return f"{came}; they should fill {0.9 * interval:.3g} to {1.1 * interval:.3g} s."


def _lumps(drawn: dict[float, list[float]]) -> str | None:
    interval, few = min(((i, len(set(pauses))) for i, pauses in drawn.items()), key=lambda pair: pair[1])
    if few < LUMPS:
        return f"For an interval of {interval:g} s there are only {few} different pauses: the herd goes on in lumps."
    return None


def _leans(drawn: dict[float, list[float]]) -> str | None:
    for interval, pauses in drawn.items():
        if abs(mean := statistics.fmean(pauses) / interval - 1) > OFF:
            return (
                f"For an interval of {interval:g} s the mean pause is {interval * (1 + mean):.4g} s: draw as often "
                "below the interval as above it."
            )
    return None


def polling_client(client: Client) -> Verdict:
    """Exercise: `client(url, log)` polls every 5 s, loses nothing, keeps away when asked to, and never waits for ever.

    For two virtual minutes on the real server, which is overloaded twice, asks for another pause each time, and once
    does not answer at all.
    """

    def further(evidence: Evidence) -> str | None:
        pause = usual_pause(evidence)
        if abs(pause - INTERVAL) > 0.2 * INTERVAL:
            return f"Between an answer and the next request lie {pause:.1f} s; it should ask every {INTERVAL:g} s."
        return None

    return pulling_client(client, short_polling.create_app, "is the pause missing?", further, stalls=True)
