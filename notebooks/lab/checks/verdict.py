"""A verdict on an answer, and how one is reached: by cases, against named mistakes."""

import dis
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """Whether the answer passes, and one or two sentences."""

    ok: bool
    text: str

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return f"✓ {self.text}" if self.ok else f"Not yet. {self.text}"


STUB = Verdict(False, "This is still the empty stub: replace the dots by your code, run the cell, and check again.")


def is_stub(function: Callable[..., Any]) -> bool:
    """Whether a function's body is only a docstring and dots: it looks at nothing, not even at its arguments."""
    loads = any(
        step.opname.startswith("LOAD") and step.opname != "LOAD_CONST" for step in dis.get_instructions(function)
    )
    return not loads and set(function.__code__.co_consts) <= {None, function.__doc__, Ellipsis}


def compared(
    function: Callable[..., Any],
    right: Callable[..., Any],
    mistakes: dict[str, Callable[..., Any]],
    cases: Sequence[tuple[Any, ...]],
    praise: str,
) -> Verdict:
    """Try a function on cases; if it is wrong, name the mistake whose results are the same as its results."""
    if is_stub(function):
        return STUB
    given = [tried(function, case) for case in cases]
    for result, case in zip(given, cases, strict=True):
        if isinstance(result, Exception):
            return Verdict(False, f"For {_named(case)} it raised {type(result).__name__}: {result}.")
    if _same(given, [right(*case) for case in cases]):
        return Verdict(True, praise)
    for text, mistake in mistakes.items():
        if _same(given, [mistake(*case) for case in cases]):
            return Verdict(False, text)
    wrong = next((g, c) for g, c in zip(given, cases, strict=True) if not _same([g], [right(*c)]))
    return Verdict(False, f"For {_named(wrong[1])} it gives {wrong[0]!r}, and should give {right(*wrong[1])!r}.")


def tried(function: Callable[..., Any], case: tuple[Any, ...]) -> Any:
    """What the function gives for a case, or the exception it raises."""
    try:
        return function(*case)
    except Exception as error:
        return error


def _named(case: tuple[Any, ...]) -> str:
    return ", ".join(map(repr, case))


def _same(given: list[Any], wanted: list[Any]) -> bool:
    def close(a: Any, b: Any) -> bool:
        if isinstance(b, (list, tuple)):
            return isinstance(a, (list, tuple)) and len(a) == len(b) and all(map(close, a, b))
        return isinstance(a, (int, float)) and abs(a - b) <= 1e-9 * max(1.0, abs(b))

    return all(map(close, given, wanted))
