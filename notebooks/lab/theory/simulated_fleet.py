"""One process of a fleet, client by client, without a law: what it has to do, in the order in which it comes.

    Poisson updates, each client's heartbeats ─▶ one thing at a time, first come first served ─▶ when the last was done

No formula of lab.theory.fleet or lab.cost.capacity is used here: the two are held against each other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servers.limits import check_finite, check_positive, check_whole

MOST_EVENTS = 10_000_000


@dataclass(frozen=True)
class SimulatedProcess:
    """What came out: when each update had reached the last client (s after it came), and how busy the process was."""

    last: NDArray[np.float64]
    busy: float

    def within(self, deadline: float) -> float:
        """The share of the updates that had reached everybody by then."""
        return float((self.last <= deadline).mean()) if len(self.last) else 1.0


def simulated_process(
    clients: int,
    rate: float,
    delivery: float,
    *,
    publish: float = 0.0,
    beat: float = 0.0,
    every: float = 15.0,
    updates: int = 1000,
    spread: float = 0.0,
    seed: int = 1,
) -> SimulatedProcess:
    """A process with so many clients, until `updates` have come, `rate` a second.

    An update takes `publish` and then `delivery` for each client; a client's heartbeat takes `beat` and comes each
    `every`, from a moment of its own (all in s). With `spread` the services vary: their deviation over their mean.
    Raises ValueError for a number that cannot be, and for more than MOST_EVENTS events.
    """
    check_whole(clients=clients, least=1)
    check_whole(updates=updates, least=1)
    check_positive(rate=rate, every=every)
    check_finite(delivery=delivery, publish=publish, beat=beat, spread=spread)
    if updates * (1 + (clients / every / rate if beat else 0)) > MOST_EVENTS:
        raise ValueError(f"that is more than {MOST_EVENTS:,} events: take fewer updates, or clients")
    rng = np.random.default_rng(seed)
    news = np.cumsum(rng.exponential(1 / rate, updates))
    takes: Any = np.full(updates, publish + clients * delivery)
    if spread:
        takes = takes * rng.gamma(1 / spread**2, spread**2, updates)
    rounds = np.arange(int(news[-1] / every) + 1 if beat else 0) * every
    beats = (rng.uniform(0, every, clients)[:, None] + rounds).ravel()
    beats = beats[beats < news[-1]]
    comes, work = np.append(news, beats), np.append(takes, np.full(len(beats), beat))
    order = np.argsort(comes, kind="stable")
    comes, work = comes[order], work[order]
    done = np.cumsum(work)
    left = done + np.maximum.accumulate(comes - (done - work))  # whoever found it idle last began the busy time
    last = (left - comes)[order < updates]
    return SimulatedProcess(last, float(done[-1] / max(left[-1], comes[-1])))


def smallest_fleet(clients: int, rate: float, deadline: float, delivery: float, *, q: float = 0.95,
                   most_load: float = 0.7, **process: Any) -> int:  # fmt: skip
    """The fewest processes, by trying: each keeps the deadline for a share q of its updates, and its load.

    Raises ValueError where one client for each process is still too much.
    """

    def will_do(processes: int) -> bool:
        found = simulated_process(-(-clients // processes), rate, delivery, **process)
        return found.within(deadline) >= q and found.busy <= most_load

    low, high = 0, 1
    while not will_do(high):
        if high >= clients:
            raise ValueError("no number of processes will do: one client is too much for one")
        low, high = high, min(2 * high, clients)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if will_do(middle) else (middle, high)
    return high
