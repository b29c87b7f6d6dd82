"""What a notebook shows besides figures: source code from its real file, and guesses beside laws and measurements."""

import html
import inspect
from collections.abc import Mapping
from typing import Any


class Source:
    """The source of functions, classes or modules, as it stands in the file that runs."""

    def __init__(self, *things: Any) -> None:
        self.text = "\n\n\n".join(inspect.getsource(thing).rstrip() for thing in things)

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.text}\n```"


class Comparison:
    """Rows of numbers under common heads; what a cell prints to hold a guess, a law and a measurement together."""

    def __init__(self, **columns: Mapping[str, float | str]) -> None:
        """Each column maps a row's name to its number; a row that a column lacks stays empty there."""
        self.heads = tuple(columns)
        names = dict.fromkeys(name for column in columns.values() for name in column)
        self.rows = [(name, *(_number(column.get(name)) for column in columns.values())) for name in names]

    def __repr__(self) -> str:
        width = max(len(row[0]) for row in self.rows)
        lines = [("", *self.heads), *self.rows]
        return "\n".join(line[0].ljust(width) + "".join(f"{cell:>12}" for cell in line[1:]) for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ("", *self.heads))
        body = "".join(
            f'<tr><th scope="row">{html.escape(row[0])}</th>'
            + "".join(f"<td>{cell}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
