"""What a notebook shows besides figures: a file's source, guesses beside laws and measurements, and what it claims."""

import html
import inspect
import math
import textwrap
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

HUGE = 1e15  # from here on a number is shown by its power of ten
MANY = 6  # entries of a row of evidence that are shown


class Source:
    """The source of functions, classes or modules, as it stands in the file that runs."""

    def __init__(self, *things: Any) -> None:
        self.text = "\n\n\n".join(inspect.getsource(thing).rstrip() for thing in things)

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.text}\n```"


class Comparison:
    """Rows of numbers under common heads; what a cell prints to hold a guess, a law and a measurement together.

    A guess may be anything: it is shown as it is, and if it is no number, a line below says that those can be compared.
    """

    def __init__(self, **columns: Mapping[str, Any]) -> None:
        """Each column maps a row's name to its number; a row that a column lacks stays empty there."""
        self.heads = tuple(columns)
        names = dict.fromkeys(name for column in columns.values() for name in column)
        self.rows = [(name, *(_cell(column.get(name)) for column in columns.values())) for name in names]
        guesses = [value for head, column in columns.items() if head.startswith("guess") for value in column.values()]
        words = [_cell(value) for value in guesses if not _is_number(value) and _cell(value)]
        is_no = "is no number" if len(words) == 1 else "are no numbers"
        self.note = f"{', '.join(f'“{word}”' for word in words)} {is_no}: only those can be compared." if words else ""

    def __repr__(self) -> str:
        width = max((len(row[0]) for row in self.rows), default=0)
        lines = [("", *self.heads), *self.rows]
        text = [line[0].ljust(width) + "".join(f"{cell:>12}" for cell in line[1:]) for line in lines]
        return "\n".join([*text, self.note] if self.note else text)

    def _repr_html_(self) -> str:
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return _html(("", *self.heads), self.rows) + note


class Claims:
    """Sentences, each with the evidence for it: what held, or, raised as an AssertionError, what did not."""

    def __init__(self, claimed: Mapping[str, tuple[Any, Any]]) -> None:
        self.rows = [
            ("✓" if truth else "✗", sentence, _evidence(shown)) for sentence, (truth, shown) in claimed.items()
        ]

    @property
    def broken(self) -> list[str]:
        """The sentences that do not hold, with their evidence."""
        return [f"{sentence}: {shown}" for mark, sentence, shown in self.rows if mark == "✗"]

    def __repr__(self) -> str:
        width = max(len(row[1]) for row in self.rows)
        return "\n".join(f"{mark} {sentence:{width}}  {shown}".rstrip() for mark, sentence, shown in self.rows)

    def _repr_html_(self) -> str:
        return _html(("", "claim", "evidence"), [(row[1], row[0], row[2]) for row in self.rows], mark=True)


def claims(claimed: Mapping[str, tuple[Any, Any]]) -> Claims:
    """What a notebook claims: each sentence with (whether it holds, the evidence to show), as the last line of a cell.

    Raises AssertionError with every sentence that does not hold, and its evidence.
    """
    held = Claims(claimed)
    if held.broken:
        raise AssertionError("\n".join(["not so:", *held.broken]))
    return held


def _html(heads: tuple[str, ...], rows: list[tuple[str, ...]], *, mark: bool = False) -> str:
    """A table whose rows begin with their heads; with `mark`, the second cell of a row stands before its head."""
    left = ' style="text-align:left"' if mark else ""
    head = "".join(f'<th scope="col"{left}>{html.escape(name)}</th>' for name in heads)

    def row_of(row: tuple[str, ...]) -> str:
        name, cells = f'<th scope="row"{left}>{html.escape(row[0])}</th>', row[1:]
        before, after = (cells[:1], cells[1:]) if mark else ((), cells)
        return "".join([*(f"<td>{c}</td>" for c in before), name, *(f"<td{left}>{html.escape(c)}</td>" for c in after)])

    body = "".join(f"<tr>{row_of(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return _number(value) if _is_number(value) or isinstance(value, float) else textwrap.shorten(repr(value), 30)


def _is_number(value: Any) -> bool:
    """Whether it is one real number, however large, and whoever made it."""
    if isinstance(value, (str, bytes)) or (isinstance(value, np.ndarray) and value.ndim):
        return False
    try:
        return not math.isnan(value)
    except (TypeError, ValueError):
        return False
    except OverflowError:
        return True


def _number(value: Any) -> str:
    if isinstance(value, (int, np.integer)):
        whole = int(value)
        return f"{whole:,}" if abs(whole) < HUGE else f"{Decimal(whole):.2e}"
    value = float(value)
    return f"{value:,.0f}" if 1000 <= abs(value) < HUGE else f"{value:.3g}"


def _evidence(value: Any) -> str:
    """Evidence in a few words: numbers to three digits, long rows by their first entries."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (bool, np.bool_)) or value is None:
        return str(value)
    if isinstance(value, (int, float, np.integer, np.floating)):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_evidence(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        entries = [_evidence(entry) for entry in list(value)[:MANY]]
        return ", ".join(entries) + (f", … ({len(value)})" if len(value) > MANY else "")
    return str(value)
