"""Where a choice turns: one number moved up and down until the answer is another, then halved down to the point.

a choice, as a function of Requirements ─▶ the same with one number moved ─▶ Flip, Flip, ... the nearest first
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lab.cost.decision import figure
from lab.cost.requirements import Requirements

REACH = 1000  # a flip further away than this factor is none
FROM = 1e-6  # where the way up from 0 begins
QUANTITIES = {
    "rate": "λ = {} updates per second",
    "budget": "a freshness budget of {} s",
    "upstream": "{} messages up per update",
    "rtt": "a round trip of {} s",
    "clients": "{} clients",
}
Choice = Callable[[Requirements], str | None]  # a model's name, or None when nobody will do


@dataclass(frozen=True)
class Flip:
    """With `quantity` at `value` instead of `now`, and everything else as it is, `model` is the choice."""

    quantity: str
    now: float
    value: float
    model: str

    @property
    def factor(self) -> float:
        """How many times more or less that is; infinite from 0."""
        return max(self.value / self.now, self.now / self.value) if self.now else math.inf

    def __str__(self) -> str:
        return f"{self.model} at {QUANTITIES[self.quantity].format(figure(self.value))} (now {figure(self.now)})"


def flips(requirements: Requirements, choose: Choice) -> list[Flip]:
    """The nearest flip in each quantity, upwards and downwards, the nearest first."""
    found = (_flip(requirements, choose, quantity, up) for quantity in QUANTITIES for up in (True, False))
    return sorted(filter(None, found), key=lambda flip: flip.factor)


def moved(requirements: Requirements, quantity: str, value: float) -> Requirements | None:
    """The same requirements with one number changed; None if that cannot be."""
    change: dict[str, Any] = {quantity: max(1, round(value)) if quantity == "clients" else value}
    try:
        return replace(requirements, **change)
    except ValueError:
        return None


def _flip(requirements: Requirements, choose: Choice, quantity: str, up: bool) -> Flip | None:
    now = getattr(requirements, quantity)
    if not now and not up:
        return None
    chosen, same = choose(requirements), now or FROM
    for step in np.geomspace(1, REACH if now else REACH / FROM, 24)[1:]:
        other = (now or FROM) * (step if up else 1 / step)
        there = moved(requirements, quantity, other)
        model = choose(there) if there else None
        if model is None:
            return None
        if model != chosen:
            return Flip(quantity, now, *_between(requirements, choose, quantity, same, other, model))
        same = other
    return None


def _between(
    requirements: Requirements, choose: Choice, quantity: str, same: float, other: float, model: str
) -> tuple[float, str]:
    """The point, halved down to, and who is the choice behind it."""
    chosen = choose(requirements)
    while abs(math.log(other / same)) > 1e-7:
        middle = math.sqrt(same * other)
        there = moved(requirements, quantity, middle)
        found = choose(there) if there else None
        if found == chosen:
            same = middle
        else:
            other, model = middle, found or model
    return other, model
