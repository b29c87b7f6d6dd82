"""The laws of short polling: how late, how many requests, what for, how old a copy is, and which interval is best."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lab.theory.numbers import Number, law, like, share_gone

MOST_PLACES = 100_000  # in an interval that aliased updates fall on: more are as good as anywhere

CLIENT_KEEP_ALIVE = 5.0  # s; httpx, by default, closes a connection on which it has not asked for longer

# Where these laws end. A client does not ask before it is answered: below a round trip the interval is the round trip,
# which `paced` puts in its place. An answer carries at most a batch of updates (500 here): with λT + 5 √(λT) above that
# a client has to ask again at once, and one that does not falls behind for good, as soon as λT passes the batch.


def paced(interval: Number, transit: float) -> Number:
    """max(T, RTT) (s): how often a client on a grid of T asks, T itself or, below a round trip, once a round trip."""
    return like(interval, np.maximum(interval, 2 * transit))


# Short polling: how late an update is. An update falls anywhere in an interval with equal chance, waits
# for the next poll, and travels one transit. The law needs no more than that the updates do not know the
# polls' clock: it holds for Poisson and bursty arrivals alike, and fails for periodic ones (aliasing).


@law
def polling_mean_delay(interval: Number, transit: float = 0.0) -> Number:
    """T/2 + d, T at least RTT: the mean of a uniform wait on (0, T), and the way back."""
    return paced(interval, transit) / 2 + transit


@law
def polling_delay_sd(interval: Number, transit: float = 0.0) -> Number:
    """T/√12, T at least RTT: the standard deviation of a uniform wait on (0, T)."""
    return paced(interval, transit) / math.sqrt(12)


@law
def polling_delay_quantile(q: Number, interval: float, transit: float = 0.0) -> Number:
    """qT + d, T at least RTT: the delay that a share `q` of the updates does not exceed; `q` = 1 gives the worst."""
    return q * paced(interval, transit) + transit


@law
def polling_max_delay(interval: Number, transit: float = 0.0) -> Number:
    """T + d, T at least RTT: an update that just missed a poll."""
    return paced(interval, transit) + transit


@law
def polling_delay_cdf(delay: Number, interval: float, transit: float = 0.0) -> Number:
    """The share of updates that are no later than `delay` (s): (delay - d)/T, between 0 and 1; T at least RTT."""
    return like(delay, np.clip((delay - transit) / paced(interval, transit), 0.0, 1.0))


# Short polling: how many requests, and what they are good for.


@law
def polling_requests(clients: float, seconds: Number, interval: float, transit: float = 0.0) -> Number:
    """N·t/T, T at least RTT: the clock alone decides, whatever the rate of updates."""
    return clients * seconds / paced(interval, transit)


@law
def polls_on_grid(seconds: float, interval: float, offset: float = 0.0) -> int:
    """How many polls at offset, offset + T, offset + 2T, ... fall into [0, `seconds`): exact, for one client.

    The numbers are taken as written in decimal, so that 0.3 s of polls every 0.1 s are three, not four. A client keeps
    to such a grid only if T is at least its round trip.
    """
    remaining = Fraction(str(seconds)) - Fraction(str(offset))
    return max(0, math.ceil(remaining / Fraction(str(interval))))


@law
def polling_wasted_share(x: Number) -> Number:
    """e^-x, x = λT: a poll brings nothing when no update fell into its interval (Poisson arrivals)."""
    return like(x, np.exp(-x))


@law
def polling_skipped_share(x: Number) -> Number:
    """1 - (1 - e^-x)/x, x = λT: the share of versions that a client who polls for the *latest* state never sees.

    Of the x updates in an interval only the last is seen, when there is one at all: (1 - e^-x)/x of them.
    """
    return 1 - share_gone(x)


@law
def polling_period(
    interval: Number, transit: float = 0.0, service: float = 0.0, keep_alive: float = CLIENT_KEEP_ALIVE
) -> Number:
    """T + RTT + service time: how often a client really asks that sleeps T *after* each answer.

    One that sleeps for longer than it keeps an idle connection (`keep_alive`, s) opens another for each request: one
    round trip more (RFC 9293, section 3.5), and by TLS 1.3 two (RFC 8446, section 2), which are not in this law.
    """
    handshake = np.where(np.greater(interval, keep_alive), 2 * transit, 0.0)
    return like(interval, interval + 2 * transit + service + handshake)


# Short polling: how old the client's copy is, of one file that changes at rate λ (Poisson). A copy is as
# the server was d before it arrived, and serves until the next one comes: its age runs from d to T + d.


@law
def polling_copy_age(interval: Number, transit: float = 0.0) -> Number:
    """T/2 + d (s), T at least RTT: how long ago, on average over time, the server looked as the client's copy does."""
    return paced(interval, transit) / 2 + transit


@law
def polling_fresh_share(rate: float, interval: Number, transit: float = 0.0) -> Number:
    """e^-λd · (1 - e^-x)/x: the share of time in which the copy equals the original.

    A copy of age a is still true with probability e^-λa; averaged over a in (d, T + d).
    Source, for d = 0: Cho and Garcia-Molina, "Effective page refresh policies for Web crawlers" (2003).
    """
    return math.exp(-rate * transit) * share_gone(rate * paced(interval, transit))


@law
def polling_staleness(rate: float, interval: Number, transit: float = 0.0) -> Number:
    """T/2 + d - (1 - F)/λ, F the fresh share: how long the copy has been out of date (s), on average over time.

    A copy of age a has been out of date for a - (1 - e^-λa)/λ on average, 0 while it is true; averaged
    over a in (d, T + d). Source, for d = 0: the "age" of Cho and Garcia-Molina (2003).
    """
    if rate == 0:
        return 0.0 * interval
    return polling_copy_age(interval, transit) - (1 - polling_fresh_share(rate, interval, transit)) / rate


# Short polling: which interval is best, if a request and a second of delay have a price.


@law
def polling_cost(interval: Number, rate: float, request: float, delay: float, transit: float = 0.0) -> Number:
    """a/T + bλ(T/2 + d): what one client costs per second.

    `request` (a) is the price of one request, useful or not; `delay` (b) that of one update being one
    second late for this client. It is assumed that both add up linearly: the second second of delay
    costs as much as the first.
    """
    return request / paced(interval, transit) + delay * rate * polling_mean_delay(interval, transit)


@law
def polling_best_interval(rate: Number, request: float, delay: float) -> Number:
    """√(2a / (bλ)): the interval (s) where `polling_cost` is least, because there a/T² = bλ/2.

    A rate four times as high only halves the interval. At the best interval requests and waiting cost
    the same. It is the square-root law of stock keeping (Harris, "How many parts to make at once", 1913).
    Where nothing comes, or waiting costs nothing, it is infinite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.sqrt(2 * request / np.multiply(delay, rate))
    return like(rate, np.where(np.equal(np.multiply(delay, rate), 0), np.inf, best))


@law
def polling_cost_of_missing(ratio: Number) -> Number:
    """(r + 1/r)/2, r = T / best T: the cost relative to the least (d = 0). Twice off costs 25 % more, not 100 %."""
    return (ratio + 1 / ratio) / 2


# Short polling: what happens when the clocks know each other.


@law
def jitter_delay_factor(jitter: Number) -> Number:
    """1 + j²/3: what intervals drawn from T(1 ± j) do to the mean wait; ± 10 % cost 0.33 %.

    An update falls into a long interval more often than into a short one, so the mean wait is
    E[T²] / 2E[T] (the waiting-time paradox), and the variance of a uniform T(1 ± j) is T²j²/3.
    """
    return 1 + jitter**2 / 3


@law
def aliased_delays(interval: float, every: float, phase: float = 0.0, transit: float = 0.0) -> NDArray[np.float64]:
    """The only delays (s, ascending) that updates at `phase` + n·`every` can have, polled at 0, T, 2T, ...

    With every/T = p/q in lowest terms the updates fall on q places of the interval, T/q apart: for q = 1
    every single update is equally late. Only for large q does the delay fill (0, T) as for random arrivals.
    """
    period, spacing = Fraction(str(interval)), Fraction(str(every))
    places = (spacing / period).denominator
    if places > MOST_PLACES:
        raise ValueError(f"{every!r} and {interval!r} have no common multiple near: {places:,} places in an interval")
    waits = {(-(Fraction(str(phase)) + n * spacing)) % period for n in range(places)}
    return np.array(sorted(float(wait) + transit for wait in waits))


@law
def beat_period(interval: float, every: float) -> float:
    """How long (s) the delay of updates near a multiple of T apart takes to drift once through (0, T).

    Each update shifts by the distance of `every` from that multiple; infinite when it is one.
    """
    period, spacing = Fraction(str(interval)), Fraction(str(every))
    shift = spacing % period
    shift = min(shift, period - shift)
    return float(spacing * period / shift) if shift else math.inf
