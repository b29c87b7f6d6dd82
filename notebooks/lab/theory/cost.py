"""The cost model: a client's second as work, the work in resources, the resources in money; and where a choice flips.

laws ─▶ Work (how often) ─┐
measured ─▶ Units (what each takes) ─▶ Resources ─▶ price(Prices)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.theory.long_polling import JITTER, long_polling_delay_quantile, long_polling_request_rate, within_a_batch
from lab.theory.numbers import Number, fits, fitting, law, like
from servers.feed import BATCH

# What it costs: how much of each kind of work a client makes in a second, times what a unit of it costs. The first
# is a law, the second is measured (lab.cost.processes), and what it comes to in money takes prices, which are yours.

SHORT, LONG, SOCKET, STREAM = "short polling", "long polling", "WebSocket", "SSE"
MODELS = (SHORT, LONG, SOCKET, STREAM)
HALVINGS = 200  # of the way from one place to the next: a root as near to 0 as 1e-60 is still told from it
KEEP_ALIVE = 75.0  # s; how long our servers keep a connection on which nobody asks
HOLD = 30.0  # s
HISTORY = 10_000  # updates that a feed keeps unless told otherwise: what comes between two polls must fit


@dataclass(frozen=True)
class Prices:
    """What a resource costs, in one currency. The defaults are an assumption: round figures of a rented server.

    `up` is what the server receives (often free), `down` what it sends, each for 10^9 bytes.
    """

    cpu_hour: float = 0.04
    gib_hour: float = 0.005
    gb_up: float = 0.0
    gb_down: float = 0.05
    connection_hour: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= price < math.inf for price in vars(self).values()):
            raise ValueError("a price is a number from 0 up")


@dataclass(frozen=True)
class Resources:
    """`cpu` (s), `up` and `down` (bytes), `memory` (bytes, or byte-seconds), `connections` (or connection-seconds).

    Of one unit of work, or of one client in one second. Numbers, or arrays where a curve is swept.
    """

    cpu: Any = 0.0
    up: Any = 0.0
    down: Any = 0.0
    memory: Any = 0.0
    connections: Any = 0.0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> "Resources":
        return Resources(*(amount * times for amount in vars(self).values()))

    def price(self, prices: Prices) -> Any:
        """What all of it costs."""
        return (
            self.cpu * prices.cpu_hour / 3600
            + self.memory * prices.gib_hour / 3600 / 2**30
            + self.up * prices.gb_up / 1e9
            + self.down * prices.gb_down / 1e9
            + self.connections * prices.connection_hour / 3600
        )


@dataclass(frozen=True)
class Units:
    """What one server spends on a request, on a delivery, on a connection held for a second, and on a message up.

    A delivery is what an update adds to the answer that brings it. Where nothing can be said on the connection,
    a message is a request of its own.
    """

    request: Resources
    delivery: Resources
    held: Resources
    message: Resources


@dataclass(frozen=True)
class Work:
    """How often each of them happens: per client and second where a law says so, in all where they were counted."""

    requests: Any = 0.0
    deliveries: Any = 0.0
    held: Any = 0.0
    messages: Any = 0.0

    def cost(self, units: Units) -> Resources:
        """The sum of units times how often."""
        per_connection = units.held + Resources(connections=1.0)
        pull = units.request * self.requests + units.delivery * self.deliveries
        total: Resources = pull + per_connection * self.held + units.message * self.messages
        return total


@law
def work(model: str, rate: Number, *, interval: Any = math.inf, rtt: float = 0.0, hold: float = HOLD,
         upstream: Any = 0.0) -> Work:  # fmt: skip
    """What one client of a model makes its server do in a second: `rate` updates come, `upstream` messages go.

    Short polling keeps its connection for KEEP_ALIVE seconds after each poll, so with a long `interval` (s) it holds
    one only for a part of the time; where an answer is full, with BATCH updates, it asks again at once. A long poll is
    held for `hold` (s), less a share of it drawn up to JITTER. Streams are opened once: their handshakes are not
    counted. Raises ValueError where updates would be lost, with more in an interval than the HISTORY keeps, or would
    pile up, with more in a round trip than an answer of long polling brings.
    """
    if model not in MODELS:
        raise ValueError(f"there is no model {model!r}, only {', '.join(MODELS)}")
    one = rate * 0 + 1.0
    if model == SHORT:
        if np.any(np.isinf(interval)):
            raise ValueError("short polling takes an interval: a number above 0")
        requests = polling_answers(rate * interval) / interval * one
        return Work(requests, rate, np.minimum(1.0, KEEP_ALIVE / interval) * one, upstream)
    if model == LONG:
        within_a_batch(rate * rtt)
        return Work(long_polling_request_rate(rate, rtt, hold, jitter=JITTER), rate, one, upstream)
    return Work(rate * 0, rate, one, upstream)


@law
def polling_answers(x: Number) -> Number:
    """1 + Σ P(N >= k BATCH), N Poisson with mean x = λT: the requests until an answer is not full, once an interval.

    The probabilities are the normal law's, right to 0.3 %. Raises ValueError where x + 5 √x is more than is kept.
    """
    if not np.all(fits(x, HISTORY)):
        raise ValueError(f"with {np.max(x):g} updates between two polls some are lost: {HISTORY:,} are kept")
    mean, full = np.asarray(x, float)[..., None], BATCH * np.arange(1, HISTORY // BATCH + 1)
    spread = np.sqrt(2 * np.maximum(mean, 1e-9))
    return like(x, 1 + np.vectorize(math.erfc)((full - 0.5 - mean) / spread).sum(axis=-1) / 2)


@law
def interval_for(budget: Number, transit: float, rate: float = 0.0) -> Number:
    """(F - d)/0.95: the longest interval (s) that keeps 95 % of the updates within the budget F (s).

    And no longer than `rate` allows: what comes between two polls must fit into the HISTORY.
    """
    longest = (budget - transit) / 0.95
    return like(budget, np.minimum(longest, fitting(HISTORY) / rate)) if rate else longest


@law
def meets(model: str, budget: Number, rate: float, rtt: float, hold: float = HOLD) -> Any:
    """Whether 95 % of a model's updates can be no later than `budget` (s).

    A stream needs one transit; a long poll one to three, by its law, and never where more comes in a round trip than
    fits into an answer; a poll an interval, and that no less than the round trip, because a client does not ask before
    it is answered, and no more than the history bridges.
    """
    if model not in MODELS:
        raise ValueError(f"there is no model {model!r}, only {', '.join(MODELS)}")
    transit = rtt / 2
    if model == SHORT:
        return interval_for(budget, transit, rate) >= max(rtt, 1e-9)
    if model == LONG:
        if not fits(rate * rtt, BATCH):
            return budget < 0
        return budget >= long_polling_delay_quantile(0.95, rate, rtt, hold, transit, JITTER)
    return budget >= transit


# Where one choice becomes another. All amounts are prices of units, in any one currency: money, CPU seconds, bytes.


@law
def poll_kept(interval: float, poll_held: float, push_held: float) -> float:
    """What holding the poll's connection costs more than holding the push's, in one interval (s).

    The prices are those of a connection and second; `work` says for how long a poll keeps one.
    """
    held = work(SHORT, 0.0, interval=interval).held
    return float(interval * (held * poll_held - push_held))


@law
def poll_or_push(request: float, poll_delivery: float, push_delivery: float, kept: float = 0.0) -> float:
    """λT above which a poll is cheaper than pushing: (a + kept)/(b - b').

    A poll (a) brings all that came in its interval, each update at b'; a push pays b for every one. `kept` is
    `poll_kept`. Where λT updates do not fit into one answer it is the last root of a A(x) + kept = (b - b') x, A the
    law `polling_answers`. 0 if the poll is cheaper whatever comes; infinite if there is no such λT, or only beyond what
    the history keeps. (With b < b' a poll may be cheaper for rare news: below a λT, not above one.)
    """
    saved = push_delivery - poll_delivery
    if saved <= 0:
        return 0.0 if saved == 0 and request + kept < 0 else math.inf

    def dearer(x: Any) -> Any:
        return request * polling_answers(x) + kept - saved * x

    return _for_good(_negative(dearer, np.linspace(0, fitting(HISTORY), 2000)))


@law
def long_poll_or_push(request: float, poll_delivery: float, push_delivery: float, *, rtt: float, hold: float = HOLD,
                      kept: float = 0.0) -> float:  # fmt: skip
    """λ·RTT above which long polling is cheaper than pushing, because a request then brings several updates.

    The last root of a R(λ) + b'λ + kept = bλ, R the law of the requests; `kept` is what holding costs more per second.
    Below it long polling may be cheaper, too: `long_poll_cheaper` says where. 0 if it is whatever comes; infinite if
    there is no such λ·RTT, or none at which the updates of a round trip fit into an answer.
    """
    return _for_good(long_poll_cheaper(request, poll_delivery, push_delivery, rtt=rtt, hold=hold, kept=kept))


@law
def long_poll_cheaper(request: float, poll_delivery: float, push_delivery: float, *, rtt: float, hold: float = HOLD,
                      kept: float = 0.0) -> list[tuple[float, float]]:  # fmt: skip
    """Between which values of λ·RTT long polling is cheaper than pushing; the last may be infinite.

    Up to two intervals: rare news, if holding a request costs less than holding a stream; and dense news. One that is
    narrower than 1 % is not seen. Nothing is said beyond what an answer can carry of a round trip's updates.
    """
    if rtt == 0:
        raise ValueError("without a round trip a long poll never brings several updates: rtt is a number above 0")

    def dearer(x: Any) -> Any:
        rate = x / rtt
        asked = long_polling_request_rate(rate, rtt, hold, jitter=JITTER)
        return request * asked + kept - (push_delivery - poll_delivery) * rate

    rare = 1e-6 * min(1.0, rtt / hold)
    return _negative(dearer, np.append(0.0, np.geomspace(rare, fitting(BATCH), 4000)))


def _negative(function: Callable[[Any], Any], places: NDArray[np.float64]) -> list[tuple[float, float]]:
    """The intervals in which a function is negative, told at the places and halved down to its roots between them.

    One that reaches the last place is taken to go on for ever.
    """
    below = function(places) < 0
    at = np.flatnonzero(np.diff(below))
    low, high = places[at], places[at + 1]
    for _ in range(HALVINGS if len(at) else 0):  # of all roots at once
        middle = (low + high) / 2
        alike = (function(middle) < 0) == below[at]
        low, high = np.where(alike, middle, low), np.where(alike, high, middle)
    ends = [0.0] if below[0] else []
    ends += map(float, high)
    if below[-1]:
        ends.append(math.inf)
    return list(zip(ends[::2], ends[1::2], strict=True))


def _for_good(intervals: list[tuple[float, float]]) -> float:
    """Where the last interval begins, if it goes on for ever."""
    return intervals[-1][0] if intervals and intervals[-1][1] == math.inf else math.inf


@law
def stream_or_socket(delivery: float, message: float, socket_delivery: float, socket_message: float,
                     kept: float = 0.0) -> float:  # fmt: skip
    """The messages up per update at which SSE and WebSocket cost the same; above it the WebSocket is cheaper.

    (b_ws - b_sse + kept)/(m_sse - m_ws), where m_sse is a request, and `kept` what holding the WebSocket costs more,
    per update. 0 if the WebSocket is cheaper however much is said; infinite if no talking makes it so. (With m_sse <
    m_ws a WebSocket may be cheaper for clients that say little: below a number of messages, not above one.)
    """
    if message <= socket_message:
        return 0.0 if message == socket_message and socket_delivery + kept < delivery else math.inf
    return max(0.0, (socket_delivery - delivery + kept) / (message - socket_message))


@law
def notify_or_inline(request: float, wanted: float, inflation: float = 4 / 3) -> float:
    """The size (bytes) from which on it is fewer bytes to announce a file than to send it along: w r/(i - w).

    Inline everybody is sent i bytes for one of the file (base64: 4/3); announced, a share w of the clients makes a
    request that costs r bytes, headers both ways, and is sent the file as it is. Infinite if w >= i.
    """
    return wanted * request / (inflation - wanted) if wanted < inflation else math.inf


@law
def crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that is positive at `low` has become negative, found by halving on a logarithmic scale.

    0 if it is not positive at `low`, infinite if it still is at `high`.
    """
    if function(low) <= 0:
        return 0.0
    if function(high) > 0:
        return math.inf
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return low
