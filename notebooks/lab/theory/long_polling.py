"""The laws of long polling: what is lost without a cursor, how many requests, and how late with one."""

import math

import numpy as np

from lab.theory.numbers import Number, law, like, share_gone

# Long polling. G is the gap (s) between an answer leaving the server and the client's next request arriving there,
# a round trip at least; H the longest hold (s).


@law
def long_polling_lost_share(rate: Number, gap: float) -> Number:
    """λG/(1 + λG): the share of updates that a long-polling client *without a cursor* never sees.

    It gets one update, and misses all that are published in the gap that follows: λG on average, for each one it got.
    """
    missed = rate * gap
    return missed / (1 + missed)


@law
def long_polling_request_rate(rate: Number, gap: float, hold: float, pause: float = 0.0) -> Number:
    """1/(G + e^-λG (1 - e^-λH)/λ): requests per second of one client with a cursor, Poisson arrivals.

    When news came in the gap (1 - e^-λG) the answer is immediate; else the request is held until the next update
    or the end of the hold, (1 - e^-λH)/λ on average. For λ → 0 it is a poll each G + H; for λ → ∞ one each G: then
    long polling has become polling at the round trip. A client that draws a pause from (0, `pause`) before it asks
    again has a gap of G + pause: the means of the gap g and of e^-λg take the places of G and e^-λG.
    """
    quiet = np.exp(-rate * gap) * share_gone(rate * pause)
    return like(rate, 1 / (gap + pause / 2 + quiet * hold * share_gone(rate * hold)))


@law
def long_polling_mean_delay(rate: Number, transit: float, hold: float, pause: float = 0.0) -> Number:
    """d + r E[g²]/2, r the rate of requests, g the gap: 2d, and a pause drawn from (0, `pause`) if there is one.

    An update falls into a gap with probability r E[g], and then waits for what is left of it, E[g²]/2E[g] on average.
    """
    gap = 2 * transit
    square = gap**2 + gap * pause + pause**2 / 3
    return transit + long_polling_request_rate(rate, gap, hold, pause) * square / 2


@law
def long_polling_period_sd(rate: float, gap: float, hold: float) -> float:
    """The standard deviation (s) of the time from one request to the next, for the error of a measured rate."""
    if rate == 0:
        return 0.0  # each request is held to the end
    waits = math.exp(-rate * gap)
    mean = waits * -math.expm1(-rate * hold) / rate
    square = waits * 2 * (1 - math.exp(-rate * hold) * (1 + rate * hold)) / rate**2  # E[min(X, H)²], X exponential
    return math.sqrt(max(0.0, square - mean**2))


@law
def long_polling_delay_quantile(q: float, rate: Number, gap: float, hold: float, transit: float) -> Number:
    """The delay (s) that a share `q` of the updates does not exceed, for a client with a cursor.

    In one cycle λG updates fall into the gap, on average, and wait evenly up to G; with probability
    e^-λG (1 - e^-λH) one comes while the request is held, and does not wait. All travel one transit.
    """
    at_once = np.exp(-rate * gap) * hold * share_gone(rate * hold)  # by λ, so that λ may be 0
    share = at_once / (gap + at_once)
    return like(rate, transit + gap * np.clip((q - share) / np.where(share < 1, 1 - share, 1.0), 0.0, 1.0))
