"""What a number may be: each of these raises one clear ValueError at once, so that nothing goes on for ever.

check_finite(rate=5.0, phase=0.0)   from 0 up; `least` says from where else, `most` up to where
check_positive(interval=5.0)        above 0
check_whole(clients=5)              a whole number from 0 up
"""

import math
import operator
from typing import Any


def check_finite(*, least: float = 0.0, most: float = math.inf, **values: Any) -> None:
    """Raise ValueError unless every value is a finite number from `least` to `most`."""
    for name, value in values.items():
        if not (_is_number(value) and least <= value <= most and math.isfinite(value)):
            upper = "up" if most == math.inf else f"to {most:,g}"
            raise ValueError(f"{_said(name)} is a number from {least:g} {upper}, not {value!r}")


def check_positive(*, infinite: bool = False, **values: Any) -> None:
    """Raise ValueError unless every value is a number above 0, and finite unless `infinite` ones are allowed."""
    for name, value in values.items():
        if not (_is_number(value) and value > 0 and (infinite or value < math.inf)):
            raise ValueError(f"{_said(name)} is a number above 0, not {value!r}")


def check_whole(*, least: int = 0, most: float = math.inf, **values: Any) -> None:
    """Raise ValueError unless every value is a whole number from `least` to `most`."""
    for name, value in values.items():
        try:
            good = not isinstance(value, bool) and least <= operator.index(value) <= most
        except TypeError:
            good = False
        if not good:
            upper = "up" if most == math.inf else f"to {most:,}"
            raise ValueError(f"{_said(name)} is a whole number from {least} {upper}, not {value!r}")


def _is_number(value: Any) -> bool:
    """Whether it has the size of a float: numpy's numbers do, NaN, True and text do not."""
    if isinstance(value, bool | str | bytes):
        return False
    try:
        return not math.isnan(value)
    except (TypeError, OverflowError):
        return False


def _said(name: str) -> str:
    return name.replace("_", " ")
