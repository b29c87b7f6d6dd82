"""numpy for a Python without compiled modules: what the course's laws ask of it, for single numbers.

Sweeps over arrays are for notebooks; a page asks a law for one situation. Everything else is missing, and says so when
it is called.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

inf, nan = math.inf, math.nan
float64 = float
exp, expm1, sqrt, isfinite = math.exp, math.expm1, math.sqrt, math.isfinite


class ndarray:  # noqa: N801  # its name there
    """No number is one."""


def asarray(value: Any, dtype: Any = float) -> Any:
    """The number."""
    return value


def all(value: Any) -> bool:  # its name there
    """Whether it holds."""
    return bool(value)


def equal(a: float, b: float) -> bool:
    """a == b"""
    return a == b


def less(a: float, b: float) -> bool:
    """a < b"""
    return a < b


def greater(a: float, b: float) -> bool:
    """a > b"""
    return a > b


def multiply(a: float, b: float) -> float:
    """a b"""
    return a * b


def maximum(a: float, b: float) -> float:
    """The larger one."""
    return max(a, b)


def clip(value: float, least: float, most: float) -> float:
    """The value, or the bound that it is beyond."""
    return min(max(value, least), most)


def where(condition: bool, then: float, otherwise: float) -> float:
    """One of the two."""
    return then if condition else otherwise


@contextlib.contextmanager
def errstate(**_: str) -> Iterator[None]:
    """Nothing is reported here anyway."""
    yield


class Missing:
    """What is not here; it may be named, as annotations do."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "Missing":
        return Missing(f"{self._name}.{name}")

    def __call__(self, *_: object, **__: object) -> Any:
        """Say so."""
        raise NotImplementedError(f"{self._name} is not here: numpy has no place in a browser tab")


def __getattr__(name: str) -> Missing:
    if name.startswith("__"):
        raise AttributeError(name)
    return Missing(f"numpy.{name}")
