"""The laws of the lease, of the reconnect herd and of the drain: what a bounded age costs, and what spreading buys.

age 0 ◀── polling ── a lease of A seconds, drawn from [(1 - jitter) A, A] ── push ──▶ age ∞
"""

import math
from typing import Any

import numpy as np

from lab.theory.numbers import Number, law, like

# G is the gap (s) in which a client has no stream: from the end of one at the server to the next one's request there.
# Its mean age is A (1 - jitter/2); the server of the course draws with jitter 1/2.


@law
def lease_request_rate(age: Number, gap: float, clients: float = 1.0, jitter: float = 0.5) -> Number:
    """N/(A (1 - jitter/2) + G): handshakes per second. At A = 0 it is polling each G; at A = ∞ there is none."""
    return like(age, clients / np.maximum(np.asarray(age) * (1 - jitter / 2) + gap, np.finfo(float).tiny))


@law
def lease_mean_delay(age: Number, gap: float, transit: float, jitter: float = 0.5) -> Number:
    """d + G²/2(Ā + G): an update falls into a gap with probability G/(Ā + G), and waits for half of it on average.

    Ā = A (1 - jitter/2). At A = 0 it is d + G/2, the law of short polling at the interval G.
    """
    mean = np.asarray(age) * (1 - jitter / 2)
    return like(age, transit + gap**2 / (2 * np.maximum(mean + gap, np.finfo(float).tiny)))


@law
def lease_bytes_rate(age: Number, gap: float, handshake: float, jitter: float = 0.5) -> Number:
    """Bytes per second and client that renewals cost: `handshake` bytes, both ways and all told, once an age."""
    return like(age, handshake * np.asarray(lease_request_rate(age, gap, 1.0, jitter)))


@law
def lease_half_dead(age: Number, jitter: float = 0.5) -> Number:
    """How long (s) a connection that is dead, and acknowledged by a proxy, is kept on average; A at most.

    It dies at a random moment: what is left of an age then is E[a²]/2E[a], longer than half of the mean age because a
    long age is more likely to be the one that is hit.
    """
    a = np.asarray(age, dtype=float)
    low = 1 - jitter
    square = (1 + low + low**2) / 3
    return like(age, a * square / (1 + low))


@law
def herd_mean_peak(clients: float, seconds: float, window: float) -> float:
    """N w/S: what one window of w seconds sees on average, of N clients that come back evenly within S seconds."""
    return clients * min(1.0, window / seconds) if seconds else clients


@law
def herd_peak(clients: float, seconds: float, window: float) -> float:
    """What the worst window sees: m + √(2 m ln k), m = N w/S, k = S/w windows. For many in each window, m > 10 or so.

    Balls in bins: the largest of k nearly independent numbers, each nearly normal with mean and variance m
    (Raab and Steger, "Balls into Bins - A Simple and Tight Analysis", 1998, theorem 1, for m well above ln k).
    """
    mean = herd_mean_peak(clients, seconds, window)
    return mean + math.sqrt(2 * mean * math.log(max(1.0, seconds / window if seconds else 1.0)))


@law
def drain_arrival_rate(clients: float, seconds: float, notice: float = 0.1) -> float:
    """N/((1 - notice) S): what the other servers see each second while one drains; with S = 0, all at once."""
    return clients / ((1 - notice) * seconds) if seconds else math.inf


@law
def shares_after(shares: Any, ages: float, jitter: float = 0.5) -> Any:
    """Each server's share of the clients `ages` mean ages later, where a renewal goes to any server alike.

    1/K + (share - 1/K) e^-t/Ā, about: after a few ages nothing is left of a deploy. The renewals of one age are not
    memoryless but bounded: after two mean ages or so everybody has been dealt anew at least once, which is sooner.
    """
    shares = np.asarray(shares, dtype=float)
    even = 1 / len(shares)
    return even + (shares - even) * (1 - renewed(ages, jitter))


def renewed(ages: float, jitter: float = 0.5) -> float:
    """The share of the streams that have ended once, so many mean ages after a moment chosen without regard to them.

    The residual life of an age that is even on [low, high]: density (1 - F(x))/mean.
    """
    mean = 1 - jitter / 2
    low, x = 1 - jitter, max(0.0, ages * (1 - jitter / 2))
    if x <= low:
        return x / mean
    if jitter == 0 or x >= 1:
        return 1.0
    past = x - low
    return (low + past - past**2 / (2 * jitter)) / mean
