"""Virtual time: an event loop whose clock jumps to the next timer, in a thread where `time` reads that clock.

    nothing is ready ─▶ the clock jumps to the next timer ─▶ its callbacks run, in no time ─▶ nothing is ready ─▶ ...

An hour therefore takes as long as its work, and every run with one seed is the same run. What would run in
real time beside it (a thread, a socket, a process) is refused. The thread's own `time`, `random`, `secrets`
and `os.urandom` obey the clock and the seed, if they are called through their module: a name taken before by
`from time import monotonic` stays real, and so does `datetime.now()`, which is not Python code.

    VirtualError
    ├── VirtualDeadlock       nothing is ready and no timer is set
    ├── EscapedVirtualTime    something would have run in real time
    └── OutOfTime             (also a TimeoutError) the limit in virtual or in real seconds was reached
"""

import asyncio
import contextlib
import contextvars
import functools
import itertools
import math
import os
import random
import socket
import subprocess
import threading
import time
import types
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NoReturn, TypeVar, TypeVarTuple

import anyio.to_thread

EPOCH = 1_732_305_600  # time.time() when the virtual clock reads 0 (2024-11-22 20:00 UTC)
TINY = 1e-9  # seconds; two moments closer than this are one
PATIENCE = 5.0  # real seconds that a wait for another thread may take: a notebook's print(flush=True) is one
TASKS_NAMED = 20  # in an error's text, at most

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualError(RuntimeError):
    """What goes wrong with a virtual run itself, rather than in the program it runs."""


class VirtualDeadlock(VirtualError):
    """Nothing is ready and no timer is set: every task waits for another one."""


class EscapedVirtualTime(VirtualError):
    """A thread, a socket or a process: it would run in real time, and the virtual clock would not wait for it."""


class OutOfTime(VirtualError, TimeoutError):
    """The run did not finish within its limit of virtual seconds, or within that of real ones."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in which waiting takes no time.

    `now` is the clock (s, from 0); a step beyond `limit` raises OutOfTime; `random` is what the program draws
    from. Another thread may set `interrupt`: it is raised from the loop between two rounds of callbacks.
    """

    mode = "VIRTUAL"  # what an experiment on this loop calls itself
    _scheduled: list[asyncio.TimerHandle]  # BaseEventLoop's heap of timers, the earliest first

    def __init__(self, seed: int, limit: float | None) -> None:
        super().__init__()
        self.now = 0.0
        self.limit = math.inf if limit is None else limit
        self.random = random.Random(f"program {seed}")
        self.interrupt: BaseException | None = None
        self._selector = self  # the loop asks its selector to wait for the next timer
        numbers = itertools.count(1)
        self.set_task_factory(lambda loop, coro, **options: _Task(next(numbers), coro, loop=loop, **options))

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> None:
        """Instead of waiting until something happens, move the clock to where it does; `timeout` 0: it does now."""
        if self.interrupt is not None:
            error, self.interrupt = self.interrupt, None
            if isinstance(error, OutOfTime):
                error.add_note(waiting(self))
            raise error
        if timeout != 0 and not self._scheduled:
            raise VirtualDeadlock(f"at {self.now:.3f} s nothing is ready and no timer is set\n{waiting(self)}")
        then = self.now if timeout == 0 else max(self.now, self._scheduled[0].when())
        if then > self.limit + TINY:
            limit, self.limit = self.limit, math.inf  # from here on the run is only cleaned up
            self.now = max(self.now, limit)
            raise OutOfTime(f"not finished after {limit:g} virtual seconds\n{waiting(self)}")
        self.now = then
        self._clock_resolution = max(TINY, math.ulp(then))  # a timer due now must count as due, however late it is

    def _process_events(self, events: None) -> None:
        pass  # there is no file descriptor that could have become ready

    def _write_to_self(self) -> None:
        pass  # the loop never waits, so nobody need wake it

    async def _make_subprocess_transport(self, *args: object, **options: object) -> NoReturn:
        self.escape("a process")

    def escape(self, what: str) -> NoReturn:
        """Raise EscapedVirtualTime, here and from the loop, so that the run fails even if the program catches it."""
        self.interrupt = EscapedVirtualTime(f"{what} inside a virtual run would run in real time")
        raise self.interrupt

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run `func` here and now: a thread would race the clock.

        If it sleeps, only its own result is late by as much, as with a thread. What it does, it does at the start.
        """
        future: asyncio.Future[T] = self.create_future()
        start = self.now
        try:
            settle = functools.partial(future.set_result, func(*args))
        except Exception as error:
            settle = functools.partial(future.set_exception, error)
        slept, self.now = self.now - start, start
        self.call_later(slept, lambda: future.done() or settle())
        return future


class _Task(asyncio.Task[Any]):
    """A task that hashes as its number, so that a set of tasks is walked in the same order in every run.

    asyncio.TaskGroup and anyio keep such sets, and cancel in their order; by default it depends on addresses.
    """

    def __init__(self, number: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = number  # first: Task.__init__ puts the task into a set
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


def waiting(loop: asyncio.AbstractEventLoop) -> str:
    """Which tasks there are, a line each, and where each of them waits."""

    def where(awaited: object) -> Iterator[str]:
        while isinstance(awaited, types.CoroutineType) and (frame := awaited.cr_frame):
            yield f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
            awaited = awaited.cr_await

    tasks = sorted(asyncio.all_tasks(loop), key=hash)
    lines = [f"  {task.get_name()}: {' > '.join(where(task.get_coro()))}" for task in tasks[:TASKS_NAMED]]
    if len(tasks) > TASKS_NAMED:
        lines.append(f"  and {len(tasks) - TASKS_NAMED} more")
    return "\n".join(["tasks and where they wait:", *lines])


class _ThisThread(threading.local):
    loop: VirtualLoop | None = None


_this_thread = _ThisThread()


def enter(loop: VirtualLoop) -> None:
    """Make the calling thread, for the rest of its life, the one that lives in `loop`'s time."""
    _this_thread.loop = loop


def inside() -> bool:
    """Whether the calling thread lives in virtual time."""
    return _this_thread.loop is not None


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Meanwhile, the functions named below obey clock and seed in a virtual thread, and are real in any other."""
    with contextlib.ExitStack() as undo:
        for owner, name, virtual in _replacements():
            real = getattr(owner, name)
            setattr(owner, name, _by_thread(real, virtual))
            undo.callback(setattr, owner, name, real)
        yield


def _by_thread(real: Callable[..., Any], virtual: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(*args: Any, **options: Any) -> Any:
        loop = _this_thread.loop
        return real(*args, **options) if loop is None else virtual(loop, *args, **options)

    return call


def _replacements() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    yield time, "time", lambda loop: EPOCH + loop.now
    yield time, "time_ns", lambda loop: EPOCH * 10**9 + round(loop.now * 1e9)
    for name in ("monotonic", "perf_counter"):
        yield time, name, lambda loop: loop.now
        yield time, f"{name}_ns", lambda loop: round(loop.now * 1e9)
    yield time, "sleep", _sleep
    yield os, "urandom", lambda loop, size: loop.random.randbytes(size)  # uuid
    yield random, "_urandom", lambda loop, size: loop.random.randbytes(size)  # random.SystemRandom, hence secrets
    for name in random.__all__:
        if isinstance(getattr(random, name), types.MethodType | types.BuiltinFunctionType):
            yield random, name, functools.partial(_draw, name)
    yield anyio.to_thread, "run_sync", _run_sync
    yield threading.Thread, "start", lambda loop, *_: loop.escape("a thread")
    yield threading.Condition, "wait", functools.partial(_wait, threading.Condition.wait)
    yield socket.socket, "__init__", lambda loop, *_, **__: loop.escape("a socket")
    yield socket, "getaddrinfo", lambda loop, *_, **__: loop.escape("a name lookup")
    yield subprocess.Popen, "__init__", lambda loop, *_, **__: loop.escape("a process")


def _sleep(loop: VirtualLoop, seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    loop.now += seconds  # and nothing runs meanwhile: that is what a blocked loop is


def _draw(name: str, loop: VirtualLoop, *args: Any, **options: Any) -> Any:
    return getattr(loop.random, name)(*args, **options)


async def _run_sync(loop: VirtualLoop, func: Callable[[*Ts], T], *args: *Ts, **_: object) -> T:
    return await loop.run_in_executor(None, lambda: contextvars.copy_context().run(func, *args))


def _wait(real: Callable[..., bool], loop: VirtualLoop, condition: object, timeout: float | None = None) -> bool:
    if real(condition, PATIENCE if timeout is None else min(timeout, PATIENCE)):
        return True  # another thread answered: no virtual time passed
    if timeout is None or timeout > 0:
        loop.escape("waiting for another thread")
    return False
