"""The same experiments without sockets or protocol code: numpy, a million clients, an hour, in seconds.

    moments of the updates, clients' first requests ─▶ rounds: every client's next request at once ─▶ Simulation

A request reaches the server, is answered at once or held, and the answer travels back one transit. That is all that
the delays and counts of pull depend on, so that is all there is here; `lab.virtual` shows that the real code does the
same. All times are in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from servers.limits import check_finite, check_positive, check_whole

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Pause = Callable[[Array, Counts, np.random.Generator], Array]

MOST_UPDATES = 10_000_000
MOST_ROUNDS = 2_000_000  # of requests, one for each client
BINS = 2000  # of the histogram of delays
CHUNK = 100_000  # clients that are simulated together, to bound the memory


@dataclass(frozen=True)
class Simulation:
    """What came out: counts over all clients, and the distribution of the delays (s).

    `histogram` counts the delays in BINS equal bins from 0 to `longest`, the largest delay of all.
    """

    clients: int
    seconds: float
    updates: int
    requests: int
    wasted: int
    deliveries: int
    lost: int
    mean_delay: float
    longest: float
    histogram: Counts

    def delay(self, q: float) -> float:
        """The delay that a share `q` of the deliveries did not exceed, to the width of a bin."""
        edge = int(np.searchsorted(np.cumsum(self.histogram), q * self.deliveries))
        return (edge + 1) * self.longest / BINS

    def __repr__(self) -> str:
        return (
            f"Simulation({self.clients:,} clients, {self.updates:,} updates in {self.seconds:g} s: "
            f"{self.requests:,} requests ({self.wasted:,} for nothing), {self.lost:,} lost, "
            f"delay mean {self.mean_delay:.3g} s, p95 {self.delay(0.95):.3g} s)"
        )


def every(interval: float, jitter: float = 0.0) -> Pause:
    """Pause `interval` (1 ± jitter) after each request, whatever it brought."""
    check_finite(interval=interval)
    check_finite(jitter=jitter, most=1)

    def pause(last: Array, brought: Counts, rng: np.random.Generator) -> Array:
        if not jitter:
            return np.full(len(brought), interval)
        return interval * rng.uniform(1 - jitter, 1 + jitter, len(brought))

    return pause


def adaptive(fastest: float, slowest: float, factor: float = 2.0) -> Pause:
    """Back off: `factor` times the last pause when a poll brought nothing, `fastest` again when it brought some.

    At equal requests it pays only for news in bursts that are large and last as long as the slowest pause.
    """
    check_positive(fastest=fastest)
    check_finite(slowest=slowest, least=fastest)
    check_finite(factor=factor, least=1)

    def pause(last: Array, brought: Counts, rng: np.random.Generator) -> Array:
        return np.where(brought > 0, fastest, np.clip(last * factor, fastest, slowest))

    return pause


def polling(
    times: Array,
    seconds: float,
    pause: Pause,
    *,
    clients: int = 1,
    starts: Array | None = None,
    transit: float = 0.0,
    hold: float = 0.0,
    cursor: bool = True,
    after_answer: bool = False,
    seed: int = 1,
) -> Simulation:
    """Clients that ask, `pause`, and ask again, until `seconds`.

    `times` are the moments of the updates, ascending. `starts` says when each client's first request reaches the
    server; without it they are spread evenly over the first pause. `hold` > 0 makes it long polling. Without `cursor`
    a client gets only what is published while its request is there. `after_answer` counts the pause from the answer's
    arrival, not from the request. Updates that are not answered for by the end are not counted, neither way.
    Raises ValueError for a number that cannot be, and for more than MOST_ROUNDS rounds: clients that never pause.
    """
    check_finite(seconds=seconds, transit=transit, hold=hold)
    check_whole(clients=clients, least=1, most=MOST_UPDATES)
    if len(times) > MOST_UPDATES or not (np.isfinite(times).all() and (np.diff(times) >= 0).all()):
        raise ValueError(f"the updates' moments ascend, and are {MOST_UPDATES:,} at most")
    _check_rounds(pause, seconds, 2 * transit if hold or after_answer else 0.0, hold, len(times))
    rng = np.random.default_rng(seed)
    if starts is None:
        starts = pause(np.zeros(clients), np.ones(clients, np.int64), rng) * (np.arange(clients) + 0.5) / clients
    longest = _longest(times, pause, transit, hold, rng)
    parts = [
        _chunk(times, seconds, pause, starts[at : at + CHUNK], transit, hold, cursor, after_answer, longest, rng)
        for at in range(0, len(starts), CHUNK)
    ]
    deliveries = sum(part.deliveries for part in parts)
    return Simulation(
        clients=len(starts),
        seconds=seconds,
        updates=len(times),
        requests=sum(part.requests for part in parts),
        wasted=sum(part.wasted for part in parts),
        deliveries=deliveries,
        lost=sum(part.lost for part in parts),
        mean_delay=sum(part.total for part in parts) / deliveries if deliveries else float("nan"),
        longest=longest,
        histogram=np.sum([part.histogram for part in parts], axis=0),
    )


@dataclass
class _Part:
    """What a chunk of clients adds; `total` is the sum of its delays (s)."""

    requests: int = 0
    wasted: int = 0
    deliveries: int = 0
    lost: int = 0
    total: float = 0.0
    histogram: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))


def _check_rounds(pause: Pause, seconds: float, back: float, hold: float, updates: int) -> None:
    """Raise ValueError if there would be too many: a round takes its pause, and is held to the end or to an update."""
    pauses = [pause(np.zeros(1000), np.full(1000, n), np.random.default_rng(0)) for n in (0, 1)]
    shortest = min(float(np.mean(drawn)) for drawn in pauses) + back
    empty = shortest + hold
    if not (shortest >= 0 and empty > 0) or seconds / empty + (updates if hold else 0) > MOST_ROUNDS:
        raise ValueError(f"with {shortest:g} s from an answer to the next request there is no end to the requests")


def _longest(times: Array, pause: Pause, transit: float, hold: float, rng: np.random.Generator) -> float:
    """An upper bound of the delays: the longest pause there can be, asked for as if nothing ever came."""
    last = pause(np.zeros(1000), np.zeros(1000, np.int64), rng)
    for _ in range(64):
        last = np.maximum(last, pause(last, np.zeros(1000, np.int64), rng))
    return float(last.max()) + 4 * transit + 1e-9


def _chunk(
    times: Array,
    seconds: float,
    pause: Pause,
    arrival: Array,
    transit: float,
    hold: float,
    cursor: bool,
    after_answer: bool,
    longest: float,
    rng: np.random.Generator,
) -> _Part:
    """These clients, from their first request's `arrival` at the server on, round by round."""
    part = _Part()
    sums, forever = np.concatenate(([0.0], np.cumsum(times))), np.append(times, np.inf)
    seen = np.zeros(len(arrival), np.int64) if cursor else np.searchsorted(times, arrival, "left")
    last = np.zeros(len(arrival))
    while len(arrival):
        if not cursor:
            now = np.searchsorted(times, arrival, "left")
            part.lost += int((now - seen).sum())
            seen = now
        answer = np.maximum(arrival, np.minimum(forever[seen], arrival + hold)) if hold else arrival
        unanswered = int(((answer >= seconds) & (arrival < seconds)).sum())
        part.requests += unanswered
        keep = answer < seconds
        arrival, answer, seen, last = arrival[keep], answer[keep], seen[keep], last[keep]
        known = np.searchsorted(times, answer, "right")
        brought, got = known - seen, answer + transit
        part.requests += len(arrival)
        part.wasted += int((brought == 0).sum())
        part.deliveries += int(brought.sum())
        part.total += float((brought * got - (sums[known] - sums[seen])).sum())
        part.histogram += _histogram(times, seen, brought, got, longest)
        last = pause(last, brought, rng)
        arrival = (got + transit if after_answer or hold else arrival) + last
        seen = known
    return part


def _histogram(times: Array, seen: Counts, brought: Counts, got: Array, longest: float) -> Counts:
    """Delays of what one round brought, into bins."""
    some = brought > 0
    counts, first, moment = brought[some], seen[some], got[some]
    offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    delays = np.repeat(moment, counts) - times[np.repeat(first, counts) + offsets]
    bins = np.minimum((delays * (BINS / longest)).astype(np.int64), BINS - 1)
    return np.bincount(bins, minlength=BINS)


def poisson(rate: float, seconds: float, seed: int = 1) -> Array:
    """Moments of a Poisson stream of updates, `rate` a second on average. Raises ValueError for what cannot be."""
    _check_updates(rate, seconds)
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


def _check_updates(rate: float, seconds: float) -> None:
    check_finite(rate=rate, seconds=seconds)
    check_finite(updates=rate * seconds, most=MOST_UPDATES)


def bursts(rate: float, size: int, seconds: float, within: float = 0.2, seed: int = 1) -> Array:
    """`rate` updates a second on average, `size` at a time within `within` seconds; the bursts come at random."""
    check_whole(size=size, least=1, most=MOST_UPDATES)
    check_finite(within=within)
    _check_updates(rate, seconds)
    rng = np.random.default_rng(seed)
    begin = rng.uniform(0, seconds, rng.poisson(rate * seconds / size))
    times = np.sort((begin[:, None] + rng.uniform(0, within, (len(begin), size))).ravel())
    return times[times < seconds]
