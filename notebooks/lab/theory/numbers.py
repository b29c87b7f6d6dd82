"""What the laws share: numbers in, numbers out; arrays in, arrays out."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", float, NDArray[np.float64])


def like(given: Number, value: Any) -> Number:
    """`value` in the form in which the law was asked: a plain float, which prints as a number, or an array."""
    answer: Number = value if isinstance(given, np.ndarray) else float(value)
    return answer


def share_gone(x: Number) -> Number:
    """(1 - e^-x) / x, and its limit 1 at x = 0: the mean of e^-xu over u in (0, 1)."""
    x_or_1 = np.where(np.equal(x, 0), 1.0, x)
    return like(x, np.where(np.equal(x, 0), 1.0, -np.expm1(-x_or_1) / x_or_1))
