"""Values as answers give them: a number is a number, whoever made it, and a text shows it rounded.

numpy, Fraction, Decimal, a generator, a tuple ─▶ plain: numbers and lists ─▶ same? shown
"""

import contextlib
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Set
from decimal import Decimal
from itertools import islice
from typing import Any

MANY = 100_000  # entries; an iterable that gives more has no end
CLOSE = 1e-6  # relative: single precision is precise enough, and no mistake is that small
LONG = 100  # characters of a value in a text
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object; it says nothing, and is another one each time


def plain(value: Any) -> Any:
    """The value in Python's own numbers and lists: arrays, tuples and generators become lists, a fraction a float.

    Raises ValueError for an iterable without an end, and whatever a generator raises.
    """
    if hasattr(value, "tolist"):  # numpy's arrays and scalars; some of these have no counterpart in Python
        given = value.tolist()
        if type(given) is not type(value):
            return plain(given)
        return float(given) if isinstance(given, numbers.Real) else given
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, bytearray)):
        return value
    if isinstance(value, (Decimal, numbers.Real)):
        return float(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Set):  # it has no order, so it is no list
        return value
    if isinstance(value, Iterable):
        entries = list(islice(value, MANY + 1))
        if len(entries) > MANY:
            raise ValueError("what it gives has no end")
        return [plain(entry) for entry in entries]
    return value


def same(given: Any, wanted: Any) -> bool:
    """Whether two plain values are equal, numbers up to rounding."""
    if isinstance(wanted, (list, tuple)):
        return isinstance(given, (list, tuple)) and len(given) == len(wanted) and all(map(same, given, wanted))
    if isinstance(given, (int, float)) and isinstance(wanted, (int, float)):
        with contextlib.suppress(OverflowError):  # an int beyond all floats
            return given == wanted or math.isclose(given, wanted, rel_tol=CLOSE, abs_tol=1e-9)
        return False
    return type(given) is type(wanted) and bool(given == wanted)


def shown(value: Any) -> str:
    """A value in a text: numbers rounded to six digits, long ones cut."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, tuple):
        text = f"({', '.join(map(shown, value))})"
    else:
        text = getattr(value, "__name__", None) or ADDRESS.sub("", repr(value))
    return text if len(text) <= LONG else text[: LONG - 1] + "…"
