"""A verdict on an answer, and how one is reached: evidence, compared with what must be true, against named mistakes.

    an answer ─▶ judged: is it a function, and more than a stub? ─▶ the check ─▶ Verdict
                                                                       └─ raises ─▶ Verdict, of two lines

A mistake is named only if the evidence is of that mistake alone; otherwise the verdict says what was expected and
what came.
"""

import asyncio
import contextlib
import copy
import dis
import functools
import inspect
import re
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from lab.checks.bounded import Misfit, bounded, concerns_the_answer, explained
from lab.checks.values import plain, same, shown

Answer = Callable[..., Any]
Check = TypeVar("Check", bound=Callable[..., "Verdict"])


@dataclass(frozen=True)
class Verdict:
    """Whether the answer passes, and one or two sentences."""

    ok: bool
    text: str

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return f"✓ {self.text}" if self.ok else f"Not yet. {self.text}"


STUB = Verdict(False, "This is still the empty stub: write its body, run the cell, and check again.")


def judged(check: Check) -> Check:
    """A check that says so kindly if its answer is no function or a stub, and turns an answer's failure into a verdict.

    What the check itself does wrong is raised as ever.
    """

    @functools.wraps(check)
    def judge(answer: Any, *args: Any, **options: Any) -> Verdict:
        if not callable(answer):
            return Verdict(False, _no_function(answer))
        if is_stub(answer):
            return STUB
        try:
            return check(answer, *args, **options)
        except (Exception, SystemExit, GeneratorExit, asyncio.CancelledError) as error:
            if concerns_the_answer(error) or _does_not_fit(answer, error):
                return Verdict(False, explained(error))
            raise

    return cast(Check, judge)


def _no_function(answer: Any) -> str:
    if inspect.iscoroutine(answer):
        answer.close()
        what = "a coroutine, what calling an `async def` gives"
    else:
        what = f"{shown(answer)}, and no function"
    return f"That is {what}: give the check the function itself, its name without brackets behind it."


def _does_not_fit(answer: Answer, error: BaseException) -> bool:
    """Whether it is an answer that takes other arguments than the check gives."""
    name = re.escape(getattr(inspect.unwrap(answer), "__qualname__", "") or type(answer).__call__.__qualname__)
    return isinstance(error, TypeError) and bool(re.match(rf"{name}\(\) (takes|missing|got) ", str(error)))


def is_stub(function: Answer) -> bool:
    """Whether a function's body is only a docstring, dots or `pass`: it looks at nothing and does nothing."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function):  # an object that can be called, or a class
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    if code is None:  # not written in Python
        return False
    for step in dis.get_instructions(code):
        loads = step.opname.startswith("LOAD") and step.opname != "LOAD_CONST"
        if loads or step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            return False
    return set(code.co_consts) <= {None, function.__doc__, Ellipsis}


@judged
def compared(
    function: Answer,
    right: Answer,
    mistakes: Mapping[str, Answer | tuple[Answer, ...]],
    cases: Sequence[tuple[Any, ...]],
    praise: str,
    *,
    only: Mapping[str, Collection[int]] | None = None,
) -> Verdict:
    """Try a function on cases; if it is wrong, name the mistake whose results are the same as its results.

    `mistakes` has one or more functions for each text; `only` has, for a text, the numbers of those cases that go
    wrong if that is the mistake, and no others.
    """
    given = bounded(lambda: [tried(function, case) for case in cases])
    wanted = [plain(right(*case)) for case in cases]
    wrong = [n for n, (came, due) in enumerate(zip(given, wanted, strict=True)) if not same(came, due)]
    if not wrong:
        return Verdict(True, praise)
    like = [text for text, functions in mistakes.items() if any(_like(given, f, cases) for f in _several(functions))]
    if len(like) == 1:
        return Verdict(False, like[0])
    if raised := [n for n in wrong if isinstance(given[n], Exception)]:
        return Verdict(False, f"For {named(cases[raised[0]])}: {explained(given[raised[0]])}")
    case, came = cases[wrong[0]], given[wrong[0]]
    seen, due = shown(came), shown(right(*case))
    if seen == due and isinstance(came, (int, float)):  # they differ in digits that are not shown
        seen, due = f"{came!r}", f"{right(*case)!r}, not rounded"
    first = f"For {named(case)} it gives {seen}, and should give {due}."
    for text, numbers in (only or {}).items():
        if set(wrong) <= set(numbers):
            return Verdict(False, f"{text}\n{first}")
    if all(given[n] is None for n in wrong):
        return Verdict(False, f"{first} Is there a `return`?")
    return Verdict(False, first)


def _several(functions: Answer | tuple[Answer, ...]) -> tuple[Answer, ...]:
    return functions if isinstance(functions, tuple) else (functions,)


def _like(given: Sequence[Any], mistake: Answer, cases: Sequence[tuple[Any, ...]]) -> bool:
    """Whether the results are the mistake's, as far as it has any: dividing by zero, an answer may do what it likes."""
    alike = []
    for came, case in zip(given, cases, strict=True):
        with contextlib.suppress(ZeroDivisionError):
            alike.append(same(came, plain(mistake(*copy.deepcopy(case)))))
    return bool(alike) and all(alike)


def tried(function: Answer, case: tuple[Any, ...]) -> Any:
    """What a plain function gives for a copy of the case, as a plain value, or the exception it raises.

    Raises Misfit if it is an `async def`.
    """
    try:
        result = function(*copy.deepcopy(case))
        if inspect.isawaitable(result) or inspect.isasyncgen(result):
            if inspect.iscoroutine(result):
                result.close()
            raise Misfit("It is an `async def`; here a plain `def` is asked for, whose caller does not await.")
        return plain(result)
    except Misfit:
        raise
    except Exception as error:
        return error


def awaiting(function: Answer) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The function, to be awaited; if what it gives cannot be, Misfit is raised, which says that."""

    @functools.wraps(function, updated=())
    async def call(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if inspect.isasyncgen(result):
            raise Misfit(
                "It has a `yield`, so its caller gets a generator and cannot await it: `return` what is asked."
            )
        if not inspect.isawaitable(result):
            raise Misfit("It is a plain `def`; here an `async def` is asked for, whose caller awaits it.")
        return await result

    return call


def named(case: tuple[Any, ...]) -> str:
    """A case in a text."""
    return ", ".join(map(shown, case))
