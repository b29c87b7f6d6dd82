"""The checks of notebook 05: right answers pass, however unusual, and wrong ones are told what is wrong."""

import functools
import math
import operator
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from lab import checks
from tests.support_checks import Corpus, judging


def stub(*_: Any) -> Any:
    """An exercise's empty function."""


def never_ends(*_: float) -> float:
    while True:
        pass


async def an_async_def(*_: float) -> float:
    return 1.0


class Cost:
    """An object that can be called."""

    def __call__(self, request: float, delivery: float, rate: float, interval: float) -> float:
        return delivery + request / rate / interval


def scaled(unit: float, a: float, b: float, rate: float, t: float) -> float:
    return unit * (a / (rate * t) + b)


def cost_over_a_day(a: float, b: float, rate: float, t: float) -> float:
    polls, updates = 86400 / t, 86400 * rate
    return (polls * a + updates * b) / updates


COSTS = Corpus(
    checks.cost_per_delivery,
    stub,
    right={
        "the formula": lambda a, b, rate, t: a / (rate * t) + b,
        "one fraction": lambda a, b, rate, t: (a + b * rate * t) / (rate * t),
        "over a day": cost_over_a_day,
        "a fraction": lambda a, b, rate, t: Fraction(a) / (Fraction(rate) * Fraction(t)) + Fraction(b),
        "a decimal": lambda a, b, rate, t: Decimal(a) / (Decimal(rate) * Decimal(t)) + Decimal(b),
        "numpy": lambda a, b, rate, t: np.divide(a, rate * t) + np.float64(b),
        "an array without dimensions": lambda a, b, rate, t: np.array(a / (rate * t) + b),
        "single precision": lambda a, b, rate, t: np.float32(a / (rate * t) + b),
        "a partial": functools.partial(scaled, 1.0),
        "an object": Cost(),
        "with names": lambda request, delivery, rate, interval: sum((request / (rate * interval), delivery)),
    },
    wrong={
        "useful polls": (lambda a, b, rate, t: a * (1 - math.exp(-rate * t)) / (rate * t) + b, "empty ones"),
        "one poll, one update": (lambda a, b, rate, t: a + b, "one poll with one update"),
        "a poll and its updates": (lambda a, b, rate, t: a + rate * t * b, "a poll and all it brings"),
        "a second": (lambda a, b, rate, t: a / t + rate * b, "cost of a second"),
        "no delivery": (lambda a, b, rate, t: a / (rate * t), "costs something too"),
        "delivery shared": (lambda a, b, rate, t: (a + b) / (rate * t), "this shares it"),
        "times": (lambda a, b, rate, t: a * rate * t + b, "so divide by it"),
        "at least one": (lambda a, b, rate, t: a / max(rate * t, 1.0) + b, "most have none"),
        "rounded": (lambda a, b, rate, t: round(a / (rate * t) + b, 3), "it gives"),
        "rounded to cents": (lambda a, b, rate, t: round(a / (rate * t) + b, 2), ", not rounded"),
        "a constant": (lambda a, b, rate, t: 100 / 2.59 + 2.3, "For 131.7, 2, 0.013, 5 it gives 40.91"),
        "only the rate": (lambda a, b, rate, t: a / rate + b, "and should give"),
        "nothing": (lambda a, b, rate, t: print(end=""), "Is there a `return`?"),
        "a slip": (lambda a, b, rate, t: a / (rate * tt), "NameError"),  # type: ignore[name-defined]  # noqa: F821
        "three arguments": (lambda a, b, rate: a / rate + b, "TypeError"),
        "async": (an_async_def, "async def"),
        "endless": (never_ends, "does not come to an end"),
    },
)


def by_search(a: float, inside: float, push: float) -> float:
    """Found by halving, as a reader might who does not solve for it."""
    low, high = 0.0, 1e9

    def polls(x: float) -> float:
        return a + x * inside

    if polls(high) > high * push:
        return math.inf
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if polls(middle) > middle * push else (low, middle)
    return low


def catches(a: float, inside: float, push: float) -> float:
    try:
        x = a / (push - inside)
    except ZeroDivisionError:
        return float("inf")
    return x if x > 0 else float("inf")


def by_numpy(a: float, inside: float, push: float) -> Any:
    with np.errstate(divide="ignore"):
        return np.float64(a) / max(push - inside, 0.0)


def matched(a: float, inside: float, push: float) -> float:
    match push - inside:
        case saved if saved > 0:
            return a / saved
        case _:
            return math.inf


BREAK_EVENS = Corpus(
    checks.break_even,
    stub,
    right={
        "the formula": lambda a, inside, push: a / (push - inside) if push > inside else math.inf,
        "by halving": by_search,
        "caught": catches,
        "numpy": by_numpy,
        "np.where": lambda a, inside, push: np.where(push > inside, a / ((push - inside) or 1), np.inf),
        "a fraction": lambda a, b, c: Fraction(a) / (Fraction(c) - Fraction(b)) if c > b else math.inf,
        "a decimal": lambda a, b, c: Decimal(a) / (Decimal(c) - Decimal(b)) if c > b else Decimal("inf"),
        "matched": matched,
        "operator": lambda a, b, c: operator.truediv(a, operator.sub(c, b)) if b < c else float("inf"),
    },
    wrong={
        "only the push": (lambda a, inside, push: a / push, "only the difference"),
        "only the push, guarded": (lambda a, b, c: a / c if c > b else math.inf, "only the difference"),
        "upside down": (lambda a, inside, push: (push - inside) / a, "upside down"),
        "once a poll": (lambda a, inside, push: (a + inside) / push, "once a poll"),
        "added": (lambda a, inside, push: a / (push + inside), "subtracted, not added"),
        "the sign": (lambda a, b, c: a / (b - c) if c > b else math.inf, "sign is turned round"),
        "abs": (lambda a, b, c: a / abs(c - b) if b != c else math.inf, "The sign counts"),
        "negative": (lambda a, b, c: a / (c - b) if b != c else math.inf, "No interval has a negative number"),
        "divides by zero": (lambda a, inside, push: a / (push - inside), "No interval has a negative"),
        "None": (lambda a, b, c: a / (c - b) if c > b else None, "there is no such λT: say `math.inf`"),
        "nan": (lambda a, b, c: a / (c - b) if c > b else math.nan, "there is no such λT"),
        "nought": (lambda a, b, c: a / (c - b) if c > b else 0, "there is no such λT"),
        "a large number": (lambda a, b, c: a / (c - b) if c > b else 1e9, "there is no such λT"),
        "raises": (lambda a, b, c: a / (c - b) if c > b else [][0], "IndexError"),
        "rounded": (lambda a, b, c: round(a / (c - b), 2) if c > b else math.inf, "and should give 9.34579"),
        "a constant": (lambda a, b, c: 9.345794392523365, "For 131, 179, 214 it gives 9.34579"),
        "async": (an_async_def, "async def"),
        "endless": (never_ends, "does not come to an end"),
    },
)


def fits(clients: int, rate: float, budget: float, transit: float, request: float, cores: float) -> bool:
    """The solution of the third exercise."""
    if budget <= transit:
        return False
    interval = (budget - transit) / 0.95
    return clients * request / interval <= cores


def with_interval(interval: Callable[[float, float], float]) -> Callable[..., bool]:
    """The solution with another interval, of budget and transit."""

    def rule(n: int, rate: float, budget: float, transit: float, request: float, cores: float) -> bool:
        return budget > transit and 0 < n * request / interval(budget, transit) <= cores

    return rule


def with_load(n: int, rate: float, budget: float, transit: float, request: float, cores: float) -> bool:
    return budget > transit and n * request * 0.95 <= cores * (budget - transit)


def useful(n: int, rate: float, budget: float, transit: float, request: float, cores: float) -> bool:
    interval = (budget - transit) / 0.95
    return interval > 0 and n * request * (1 - math.exp(-rate * interval)) / interval <= cores


FITS = Corpus(
    checks.polls_fit,
    stub,
    right={
        "the solution": fits,
        "without a division": with_load,
        "with polls a second": lambda n, rate, f, d, a, c: f > d and n / ((f - d) / 0.95) <= c / a,
        "the longest interval": lambda n, rate, f, d, a, c: max(0.0, f - d) >= 0.95 * n * a / c,
        "numpy's bool": lambda n, rate, f, d, a, c: np.less_equal(n * a * 0.95, c * (f - d)) and np.bool_(f > d),
        "an array": lambda *case: np.array(fits(*case)),
        "the law": lambda n, rate, f, d, a, c: 0.95 * (n * a / c) + d <= f,
        "1 and 0": lambda *case: int(fits(*case)),
        "a fraction": lambda n, rate, f, d, a, c: Fraction(n) * Fraction(a) * 95 / 100 <= Fraction(c) * Fraction(f - d),
        "all": lambda *case: all((fits(*case), True)),
        "a partial": functools.partial(lambda share, n, rate, f, d, a, c: f - d >= share * n * a / c, 0.95),
    },
    wrong={
        "the mean": (with_interval(lambda f, d: 2 * (f - d)), "the *mean* delay"),
        "one client": (lambda n, *rest: fits(1, *rest), "where are the others"),
        "updates": (lambda n, rate, f, d, a, cores: n * rate * a <= cores, "the rate has nothing to do"),
        "no transit": (with_interval(lambda f, d: f / 0.95), "the answer's way"),
        "useful polls": (useful, "only polls that bring something"),
        "all, not 95 %": (with_interval(lambda f, d: f - d), "*every* update keeps the budget"),
        "times 0.95": (with_interval(lambda f, d: 0.95 * (f - d)), "divided by that, not multiplied"),
        "two transits": (with_interval(lambda f, d: (f - 2 * d) / 0.95), "one transit, not two"),
        "budget": (with_interval(lambda f, d: f), "the budget itself"),
        "negative": (lambda n, rate, f, d, a, c: n * a / ((f - d) / 0.95) <= c, "An interval cannot be negative"),
        "turned round": (lambda *case: not fits(*case), "It is turned round"),
        "True": (lambda *case: True, "it gives True, and should give False"),
        "False": (lambda *case: False, "it gives False, and should give True"),
        "words": (lambda *case: "yes" if fits(*case) else "no", "it gives 'yes', and should give True"),
        "the load": (lambda n, rate, f, d, a, c: n * a / ((f - d) / 0.95), "and should give True"),
        "raises": (lambda *case: 1 / 0, "It raised ZeroDivisionError"),
        "async": (an_async_def, "async def"),
        "endless": (never_ends, "does not come to an end"),
    },
)

CORPORA = [COSTS, BREAK_EVENS, FITS]
test_right, test_wrong, test_no_answer = judging(CORPORA)
