"""The checks of notebook 01: an interval for a budget, jitter, and a client that polls."""

import random
import statistics
from collections.abc import Callable
from typing import Any

from lab.bench.experiment import Client
from lab.bench.result import Run
from lab.checks.overload import INTERVAL, praised, tried_out
from lab.checks.verdict import STUB, Verdict, compared, is_stub, tried
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


def jittered(function: Callable[[float, random.Random], float]) -> Verdict:
    """Exercise: `pause(interval, rng)` draws a pause from interval ± 10 %, with the generator that it is given."""
    if is_stub(function):
        return STUB
    rng = random.Random(1)
    pauses = [tried(function, (10.0, rng)) for _ in range(4000)]
    if broken := next((p for p in pauses if not isinstance(p, (int, float))), None):
        return Verdict(False, f"A pause is a number of seconds, not {broken!r}.")
    low, high, mean = min(pauses), max(pauses), statistics.fmean(pauses)
    if low == high:
        return Verdict(False, "All pauses are equal: the herd stays together.")
    if low >= 10.0:
        return Verdict(False, f"It only ever waits longer: the mean is {mean:.2f} s instead of 10. Draw on both sides.")
    if low < 5.0:
        return Verdict(False, f"Pauses go down to {low:.2f} s: that is full jitter, good after failures, not ± 10 %.")
    if not (8.99 < low < 9.05 and 10.95 < high < 11.01):
        return Verdict(False, f"Pauses lie between {low:.2f} and {high:.2f} s; they should fill 9 to 11.")
    rng = random.Random(1)
    if [function(10.0, rng) for _ in range(4000)] != pauses:
        return Verdict(False, "The same seed gives other pauses: draw from `rng`, not from the random module.")
    return Verdict(True, "Spread on both sides, the mean kept, and repeatable.")


def polling_client(client: Client) -> Verdict:
    """Exercise: `client(url, log)` polls every 5 s, loses nothing, and keeps away when asked to.

    It runs for two virtual minutes against the real server, which for half a minute answers 503 with Retry-After: 20.
    """
    expected = 120 / INTERVAL
    verdict = tried_out(client, short_polling.create_app, most=3 * expected, pause="is the pause missing?")
    if isinstance(verdict, Run) and verdict.requests < 0.5 * expected:
        return Verdict(False, f"Only {verdict.requests} requests in two minutes: is the pause 5 s?")
    return praised(verdict)
