"""The checks of notebook 05: each accepts the solution, rejects the empty stub kindly, and names each mistake."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from lab import checks


def stub(*_: Any) -> Any:
    """An exercise's empty function."""


@pytest.mark.parametrize("check", [checks.cost_per_delivery, checks.break_even, checks.polls_fit])
def test_an_untouched_stub_fails_kindly(check: Callable[..., checks.Verdict]) -> None:
    """The empty function is told to be empty, not that it is wrong."""
    assert "still the empty stub" in check(stub).text


def fits(clients: int, rate: float, budget: float, transit: float, request: float, cores: float) -> bool:
    """The solution of the third exercise."""
    interval = (budget - transit) / 0.95
    return clients * request / interval <= cores


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (checks.cost_per_delivery, lambda a, b, rate, t: a / (rate * t) + b),
        (checks.break_even, lambda a, inside, push: a / (push - inside)),
        (checks.polls_fit, fits),
    ],
)
def test_the_solution_passes(check: Callable[..., checks.Verdict], solution: Callable[..., Any]) -> None:
    """The right answer is praised."""
    assert check(solution).ok


@pytest.mark.parametrize(
    ("check", "mutant", "says"),
    [
        (checks.cost_per_delivery, lambda a, b, rate, t: a * (1 - math.exp(-rate * t)) / (rate * t) + b, "empty ones"),
        (checks.cost_per_delivery, lambda a, b, rate, t: a + b, "one poll with one update"),
        (checks.cost_per_delivery, lambda a, b, rate, t: a + rate * t * b, "a poll and all it brings"),
        (checks.cost_per_delivery, lambda a, b, rate, t: a / t + rate * b, "cost of a second"),
        (checks.cost_per_delivery, lambda a, b, rate, t: a / (rate * t), "costs something too"),
        (checks.cost_per_delivery, lambda a, b, rate, t: a * rate * t + b, "it gives"),
        (checks.break_even, lambda a, inside, push: a / push, "only the difference"),
        (checks.break_even, lambda a, inside, push: (push - inside) / a, "upside down"),
        (checks.break_even, lambda a, inside, push: (a + inside) / push, "once a poll"),
        (checks.break_even, lambda a, inside, push: a / (push + inside), "subtracted, not added"),
        (checks.polls_fit, lambda n, rate, f, d, a, cores: n * a / (2 * (f - d)) <= cores, "the *mean* delay"),
        (checks.polls_fit, lambda n, rate, f, d, a, cores: fits(1, rate, f, d, a, cores), "where are the others"),
        (checks.polls_fit, lambda n, rate, f, d, a, cores: n * rate * a <= cores, "the rate has nothing to do"),
        (checks.polls_fit, lambda n, rate, f, d, a, cores: fits(n, rate, f, 0, a, cores), "the answer's way"),
        (
            checks.polls_fit,
            lambda n, rate, f, d, a, cores: (
                n * a * (1 - math.exp(-rate * (f - d) / 0.95)) / ((f - d) / 0.95) <= cores
            ),
            "only polls that bring something",
        ),
        (checks.polls_fit, lambda n, rate, f, d, a, cores: True, "it gives True, and should give False"),
        (checks.polls_fit, lambda n, rate, f, d, a, cores: 1 / 0, "it raised ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(check: Callable[..., checks.Verdict], mutant: Callable[..., Any], says: str) -> None:
    """A wrong answer is told which mistake it looks like."""
    verdict = check(mutant)
    assert not verdict.ok
    assert says in verdict.text
