"""The laws of a fleet: what many processes hold, how late the last of many clients is, what heartbeats come to.

    one update ─▶ publish p, then n clients one after the other, c each ─▶ the last is served after S = p + n c
    Poisson updates, λ a second, queue for their turn ─▶ M/D/1: P(the last is served within D)

Symbols: λ `rate` (updates per second), h `every` (s between heartbeats), n `clients` of one process, p `publish` and
c `delivery` (s), u `load` (the share of its time that a process works), W `workers`.
"""

import math
from typing import Any

import numpy as np

from lab.theory.numbers import Number, law, like

SURE = 12  # turns: with a load of 0.7 or less, one update in a thousand waits for longer


@law
def heard_without_a_shared_log(workers: int) -> float:
    """1/W: what a client hears of updates that each reach one of W workers, whichever; a consumer group is no better.

    Raises ValueError for fewer workers than one.
    """
    if workers < 1:
        raise ValueError(f"there is one worker or more, not {workers!r}")
    return 1 / workers


@law
def heartbeats(rate: Number, every: Number, *, silence: bool = True) -> Number:
    """Heartbeats per second and client: λ/(e^(λh) - 1) where only silence is filled, 1/h where a clock strikes.

    An update begins the silence anew, and so does a heartbeat. Both are 1/h for a quiet feed.
    """
    if not silence:
        return like(rate * every, 1 / every + 0 * rate)
    x = np.where(np.equal(rate, 0), 1.0, rate * every)
    return like(rate * every, np.where(np.equal(rate, 0), 1 / every, np.divide(rate, np.expm1(x))))


@law
def heartbeat_share(rate: Number, every: Number, *, silence: bool = True) -> Number:
    """The share of a client's messages that are heartbeats: e^(-λh) where silence is filled, else 1/(1 + λh)."""
    x = rate * every
    return like(x, np.exp(-x) if silence else 1 / (1 + x))


@law
def served_within(turns: float, load: float) -> float:
    """P(a queue's wait is at most so many service times), for Poisson arrivals and equal services: M/D/1.

    (1 - u) Σ_k (u(k - t))^k/k! e^(-u(k - t)), k from 0 to t (A. K. Erlang, 1909; C. D. Crommelin, 1932). The sum
    alternates, so it is not taken beyond SURE turns, where it is 1 but for a thousandth if u <= 0.7.
    0 where there is no wait that short, or the load is 1 and more.
    """
    if turns < 0 or load >= 1:
        return 0.0
    t = min(turns, SURE)
    terms = ((load * (k - t)) ** k / math.factorial(k) * math.exp(load * (t - k)) for k in range(math.floor(t) + 1))
    return min(1.0, max(0.0, (1 - load) * sum(terms)))


@law
def last_delay(clients: Number, delivery: float, publish: float = 0.0) -> Number:
    """S = p + n c: how late the last of n clients is served (s) when nothing else is to be done."""
    return like(clients * 1.0, publish + clients * delivery)


@law
def most_clients(deadline: float, rate: float, delivery: float, *, publish: float = 0.0, kept: float = 0.0,
                 most_load: float = 0.7, q: float = 0.95) -> dict[str, float]:  # fmt: skip
    """How many clients one process can hold, by what limits them: "deadline" and "load"; the smaller one counts.

    A share `q` of the updates is to have reached the last client within `deadline` (s). `kept` is the work (s per
    second) that a client makes without updates. Infinite where something does not limit; 0 where nobody can be served.
    """
    per_client = rate * delivery + kept
    spare = most_load - rate * publish
    by_load = math.inf if per_client == 0 else max(0.0, spare / per_client)

    def in_time(clients: float) -> bool:
        service = publish + clients * delivery
        load = rate * service + clients * kept
        return service == 0 or served_within((deadline - service) / service, load) >= q

    if delivery == 0 or rate == 0:
        return {"deadline": math.inf if in_time(0.0) else 0.0, "load": by_load}
    low, high = 0.0, max(0.0, (deadline - publish) / delivery)
    if not in_time(0.0):
        return {"deadline": 0.0, "load": by_load}
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if in_time(middle) else (low, middle)
    return {"deadline": low, "load": by_load}


def elasticity(function: Any, value: float, step: float = 1.02) -> float:
    """d ln f / d ln x: by how many per cent the result moves when the value moves by one."""
    return math.log(function(value * step) / function(value / step)) / (2 * math.log(step))
