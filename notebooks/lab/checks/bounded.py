"""An answer is run so that it ends, whatever it does: in a thread with virtual time and a limit of processor time.

    bounded(work)       a plain function's calls
    virtually(main)     a world of servers and clients; `time.sleep` in it is refused, as a thread or a socket is

What goes wrong comes out as an exception, and `explained` says it in two lines: what, and in which line of the answer.
"""

import asyncio
import contextlib
import linecache
import re
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import lab
import servers
from lab.bench.experiment import ExperimentError
from lab.virtual import EscapedVirtualTime, Link, Net, OutOfTime, VirtualDeadlock, VirtualError, run_virtual
from lab.virtual.clock import VirtualLoop, inside

WORK = 2.0  # s of processor time for all calls of a plain function
WORLD = 6.0  # s of processor time for a world
LONG = 160  # characters of an exception's text

T = TypeVar("T")
NOT_THE_READERS = tuple(
    str(Path(place).resolve())
    for place in (*lab.__path__, *servers.__path__, *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)


class Misfit(Exception):
    """An answer of another kind than the one that is asked for; the text is the verdict."""


class Blocked(EscapedVirtualTime):
    """`time.sleep` on the loop: nothing else would run meanwhile."""


def bounded(work: Callable[[], T]) -> T:
    """Return what `work()` gives, or raise what it raises; OutOfTime if it does not come to an end."""

    async def main(net: Net) -> T:
        return work()

    return run_virtual(main, cpu=WORK)


def virtually(
    main: Callable[[Net], Coroutine[Any, Any, T]],
    *,
    link: Link | None = None,
    limit: float | None = None,
    cpu: float = WORLD,
) -> T:
    """As `run_virtual`, with `cpu` s of processor time at most (a busy machine takes none of it), and no time.sleep."""

    async def awake(net: Net) -> T:
        with _no_sleep():
            return await main(net)

    return run_virtual(awake, link=link, limit=limit, cpu=cpu)


@contextlib.contextmanager
def _no_sleep() -> Iterator[None]:
    real = time.sleep

    def sleep(seconds: Any, /) -> None:
        if not inside() or _in_executor(sys._getframe(1)):
            real(seconds)
            return
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.interrupt = Blocked(f"time.sleep({seconds:g})")  # so that the run fails even if the answer catches it
        raise loop.interrupt

    time.sleep = sleep
    try:
        yield
    finally:
        time.sleep = real


def _in_executor(frame: FrameType | None) -> bool:
    """Whether it is a thread's work: to sleep there blocks nobody."""
    while frame:
        if frame.f_code is VirtualLoop.run_in_executor.__code__:
            return True
        frame = frame.f_back
    return False


def asked_for(error: BaseException) -> BaseException:
    """The exception that an answer raised, without what the bench has wrapped around it."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error, ExperimentError) and error.__cause__:
            error = error.__cause__
        else:
            return error


def explained(error: BaseException) -> str:
    """What an answer raised, and in which of its lines: one line each."""
    error = asked_for(error)
    at = place(error)
    if isinstance(error, (Misfit, ExperimentError)):
        return str(error)
    if isinstance(error, Blocked):
        return f"It waits by `{error}`: meanwhile nothing else runs, so `await asyncio.sleep(…)` instead{at}"
    if isinstance(error, EscapedVirtualTime):
        what = str(error).partition(" inside ")[0]
        if what.startswith(("a thread", "a process", "a UUID")):
            return f"It takes {what}, which would be the real world's, and here all is virtual: do without{at}"
        if any(
            frame.f_code is VirtualLoop.run_in_executor.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)
        ):
            return (
                f"From its thread it reaches for the real world ({what}), and here network and time are virtual: use "
                f"what can be awaited, as `httpx.AsyncClient`{at}"
            )
        return (
            f"It waits without `await` ({what}): meanwhile nothing else runs. Use what can be awaited, as "
            f"`httpx.AsyncClient`{at}"
        )
    if isinstance(error, OutOfTime):
        return f"It does not come to an end: {str(error).partition(', at ')[0].splitlines()[0]}{at}"
    if isinstance(error, VirtualDeadlock):
        return f"It waits for something that never comes{at}"
    text = next(iter(str(error).splitlines()), "")
    text = text if len(text) <= LONG else text[: LONG - 1] + "…"
    return f"It raised {type(error).__name__}{': ' if text else ''}{text}{at}"


def concerns_the_answer(error: BaseException) -> bool:
    """Whether an exception comes from the answer, rather than from the check."""
    its_own = (Misfit, VirtualError, ExperimentError, SystemExit)
    return isinstance(error, its_own) or isinstance(asked := asked_for(error), its_own) or bool(_line(asked))


def place(error: BaseException) -> str:
    """The line of the reader's own code in which an exception arose, to end a sentence with."""
    line = _line(error)
    return f",\nin line {line[1]}: `{linecache.getline(*line).strip()}`" if line else "."


def _line(error: BaseException) -> tuple[str, int] | None:
    seen: BaseException | None = error
    while seen:
        frames = list(traceback.walk_tb(seen.__traceback__))
        for frame, number in reversed(frames):
            if _is_the_readers(frame.f_code.co_filename):
                return frame.f_code.co_filename, number
        seen = seen.__cause__ or seen.__context__
    return _waiting_line(error)


def _waiting_line(error: BaseException) -> tuple[str, int] | None:
    """Where a task of the reader's waits, by the text of an OutOfTime or a VirtualDeadlock."""
    text = "\n".join([str(error), *getattr(error, "__notes__", [])])
    for name, number in re.findall(r"\((\S+):(\d+)\)", text) if isinstance(error, VirtualError) else []:
        for filename in list(linecache.cache):  # a notebook's cells are there
            if Path(filename).name == name and _is_the_readers(filename):
                return filename, int(number)
    return None


def _is_the_readers(filename: str) -> bool:
    return not filename.startswith(("<frozen", "<string", *NOT_THE_READERS)) and not str(
        Path(filename).resolve()
    ).startswith(NOT_THE_READERS)
