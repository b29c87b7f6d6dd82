"""The laws of long polling: what is lost without a cursor, how many requests, and how late with one."""

import math
from typing import Any

import numpy as np

from lab.theory.numbers import Number, fits, law, like, share_gone
from servers.feed import BATCH

# Long polling. G is the gap (s) between an answer leaving the server and the client's next request arriving there,
# a round trip at least; H the longest hold (s). A server may draw each hold from ((1 - `jitter`) H, H), as ours does
# unless told otherwise: the means over h of what depends on it take the places of those at H.

JITTER = 0.1  # the share of a hold by which our servers shorten it at random, at most


def within_a_batch(updates: Any) -> None:
    """Raise ValueError if that many updates, on average, come between two answers: an answer cannot carry them all.

    It has at most BATCH of them, and the next BATCH come a round trip later: where five deviations of a Poisson number
    do not fit, delays grow beyond these laws, and above BATCH for ever.
    """
    if not np.all(fits(updates, BATCH)):
        raise ValueError(f"with {np.max(updates):g} updates between two answers they do not fit into one ({BATCH})")


def held(rate: Any, hold: float, jitter: float = 0.0) -> Any:
    """(1 - E[e^-λh])/λ: how long (s) a request is held on average that finds no news; H, or its mean, for λ → 0."""
    least, width = (1 - jitter) * hold, jitter * hold
    return least * share_gone(rate * least) + np.exp(-rate * least) * width * share_left(rate * width)


def share_left(x: Any) -> Any:
    """(1 - (1 - e^-x)/x)/x, and its limit 1/2 at x = 0: the mean of e^-xu (1 - u) over u in (0, 1)."""
    small = np.less(x, 1e-4)
    x_or_1 = np.where(small, 1.0, x)
    return np.where(small, 0.5 - np.asarray(x) / 6, (1 + np.expm1(-x_or_1) / x_or_1) / x_or_1)


@law
def long_polling_lost_share(rate: Number, gap: float, hold: float = math.inf) -> Number:
    """λG/(λG + 1 - e^-λH): the share of updates that a long-polling client *without a cursor* never sees.

    In one cycle it gets one update, if it comes before the hold ends, and misses all that are published in the gap that
    follows: λG on average. Where every hold ends with news (λH of 5 or more) that is λG/(1 + λG), for rare news
    G/(G + H).
    """
    missed = rate * gap
    got = 1.0 if math.isinf(hold) else -np.expm1(-rate * hold)
    return like(
        rate, np.where(np.equal(rate, 0), gap / (gap + hold), missed / np.where(missed + got > 0, missed + got, 1))
    )


@law
def long_polling_request_rate(rate: Number, gap: float, hold: float, pause: float = 0.0, jitter: float = 0.0) -> Number:
    """1/(G + e^-λG (1 - e^-λH)/λ): requests per second of one client with a cursor, Poisson arrivals.

    When news came in the gap (1 - e^-λG) the answer is immediate; else the request is held until the next update
    or the end of the hold, (1 - e^-λH)/λ on average. For λ → 0 it is a poll each G + H; for λ → ∞ one each G: then
    long polling has become polling at the round trip. A client that draws a pause from (0, `pause`) before it asks
    again has a gap of G + pause: the means of the gap g and of e^-λg take the places of G and e^-λG.
    """
    quiet = np.exp(-rate * gap) * share_gone(rate * pause)
    return like(rate, 1 / (gap + pause / 2 + quiet * held(rate, hold, jitter)))


@law
def long_polling_mean_delay(
    rate: Number, transit: float, hold: float, pause: float = 0.0, jitter: float = 0.0
) -> Number:
    """d + r E[g²]/2, r the rate of requests, g the gap: 2d, and a pause drawn from (0, `pause`) if there is one.

    An update falls into a gap with probability r E[g], and then waits for what is left of it, E[g²]/2E[g] on average.
    Raises ValueError where the updates of a gap do not fit into one answer.
    """
    gap = 2 * transit
    within_a_batch(rate * (gap + pause))
    square = gap**2 + gap * pause + pause**2 / 3
    return transit + long_polling_request_rate(rate, gap, hold, pause, jitter) * square / 2


@law
def long_polling_period_sd(rate: float, gap: float, hold: float, jitter: float = 0.0) -> float:
    """The standard deviation (s) of the time from one request to the next, for the error of a measured rate."""
    if rate == 0:
        return 0.0  # each request is held to the end
    waits = math.exp(-rate * gap)
    mean = waits * float(held(rate, hold, jitter))
    # E[min(X, h)²] of an exponential X, and the mean of that over the hold h (Gauss, exact to rounding here)
    places, weights = np.polynomial.legendre.leggauss(8)
    holds = hold * (1 - jitter * (1 - places) / 2)
    squares = 2 * (1 - np.exp(-rate * holds) * (1 + rate * holds)) / rate**2
    return math.sqrt(max(0.0, waits * float(weights @ squares) / 2 - mean**2))


@law
def long_polling_delay_quantile(
    q: float, rate: Number, gap: float, hold: float, transit: float, jitter: float = 0.0
) -> Number:
    """The delay (s) that a share `q` of the updates does not exceed, for a client with a cursor.

    In one cycle λG updates fall into the gap, on average, and wait evenly up to G; with probability
    e^-λG (1 - e^-λH) one comes while the request is held, and does not wait. All travel one transit. Raises ValueError
    where the updates of a gap do not fit into one answer.
    """
    within_a_batch(rate * gap)
    at_once = np.exp(-rate * gap) * held(rate, hold, jitter)  # by λ, so that λ may be 0
    share = at_once / (gap + at_once)
    return like(rate, transit + gap * np.clip((q - share) / np.where(share < 1, 1 - share, 1.0), 0.0, 1.0))
