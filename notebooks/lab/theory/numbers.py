"""What the laws share: numbers in, numbers out; arrays in, arrays out; and what a number may be.

@law ─▶ each argument is held against DOMAINS, by its name ─▶ the closed form, or a ValueError
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", float, NDArray[np.float64])
P = ParamSpec("P")
R = TypeVar("R")

NOT_BELOW_0 = ("from 0 up", lambda x: (x >= 0) & (x < math.inf))
ABOVE_0 = ("above 0", lambda x: (x > 0) & (x < math.inf))
SHARE = ("from 0 to 1", lambda x: (x >= 0) & (x <= 1))
FINITE = ("that is finite", lambda x: (x > -math.inf) & (x < math.inf))

DOMAINS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("transit", "rate", "gap", "pause", "x", "rtt", "upstream", "payload"), NOT_BELOW_0),
    **dict.fromkeys(
        ("clients", "seconds", "budget", "request", "delay", "wanted", "age", "ages", "handshake"), NOT_BELOW_0
    ),
    **dict.fromkeys(("poll_delivery", "push_delivery", "delivery", "message"), NOT_BELOW_0),
    **dict.fromkeys(("socket_delivery", "socket_message", "service", "poll_held", "push_held"), NOT_BELOW_0),
    **dict.fromkeys(("interval", "every", "hold", "ratio", "inflation", "low", "high", "window"), ABOVE_0),
    **dict.fromkeys(("q", "jitter", "notice"), SHARE),
    **dict.fromkeys(("offset", "phase", "kept"), FINITE),
}
"""What an argument of a law may be, by its name; one that is not here may be anything."""


def law(function: Callable[P, R]) -> Callable[P, R]:
    """A law that raises ValueError, with the argument's name, for a number outside its domain: NaN always is."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        for name, value in (*zip(names, args, strict=False), *options.items()):
            if name in DOMAINS:
                _check(name, value)
        return function(*args, **options)

    return checked


def _check(name: str, value: Any) -> None:
    what, holds = DOMAINS[name]
    if type(value) is float and holds(value):  # as most are
        return
    if isinstance(value, str | bytes | bool) or not np.all(holds(value)):
        raise ValueError(f"{name.replace('_', ' ')} is a number {what}, not {value!r}")


def like(given: Number, value: Any) -> Number:
    """`value` in the form in which the law was asked: a plain float, which prints as a number, or an array."""
    answer: Number = value if isinstance(given, np.ndarray) else float(value)
    return answer


def share_gone(x: Number) -> Number:
    """(1 - e^-x) / x, and its limit 1 at x = 0: the mean of e^-xu over u in (0, 1)."""
    x_or_1 = np.where(np.equal(x, 0), 1.0, x)
    return like(x, np.where(np.equal(x, 0), 1.0, -np.expm1(-x_or_1) / x_or_1))


def fitting(room: int) -> float:
    """The most updates that may come on average, x, so that x + 5 √x fit into `room`: with five deviations."""
    return (math.sqrt(25 + 4 * room) - 5) ** 2 / 4


def fits(mean: Any, room: int) -> Any:
    """Whether so many updates, on average, fit into `room`: up to `fitting`, and what rounding adds to it."""
    return np.asarray(mean) <= (1 + 1e-9) * fitting(room)
