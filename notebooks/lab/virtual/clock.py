"""Virtual time: an event loop whose clock jumps to the next timer, in a thread where `time` reads that clock.

    nothing is ready ─▶ the clock jumps to the next timer ─▶ its callbacks run, in no time ─▶ nothing is ready ─▶ ...

An hour therefore takes as long as its work, and every run with one seed is the same run. What would run in
real time beside it (a thread, a socket, a process) is refused. The thread's own clocks obey the virtual one: `time`,
and `datetime` with its own `now`. So does what it draws obey the seed: `random`, a generator made without a seed,
`secrets`, `os.urandom`, `uuid`, and numpy's, if numpy is loaded. All that if it is called through its module: a name
taken before by `from time import monotonic` stays real. Left real are time zones, and `process_time` and `thread_time`,
the accounts of what the CPU did. A generator made without a seed before the run is beyond reach.

    VirtualError
    ├── VirtualDeadlock       nothing is ready and no timer is set, or none that ever comes
    ├── EscapedVirtualTime    something would have run in real time
    └── OutOfTime             (also a TimeoutError) the limit in virtual or in real seconds was reached
"""

import asyncio
import contextlib
import contextvars
import ctypes
import datetime
import functools
import gc
import importlib
import itertools
import math
import os
import random
import socket
import subprocess
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NoReturn, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

EPOCH = 1_732_305_600  # time.time() when the virtual clock reads 0 (2024-11-22 20:00 UTC)
TINY = 1e-9  # seconds; two moments closer than this are one
PATIENCE = 5.0  # real seconds that a wait for another thread may take: a notebook's print(flush=True) is one
CLEAN_UP = 3.0  # real seconds in which a run that took too long may end by itself
TASKS_NAMED = 20  # in an error's text, at most
real_monotonic = time.monotonic  # kept: during a run the module's own may be virtual

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualError(RuntimeError):
    """What goes wrong with a virtual run itself, rather than in the program it runs."""


class VirtualDeadlock(VirtualError):
    """Nothing is ready and no timer will ever come: every task waits for another one, or for ever."""


class EscapedVirtualTime(VirtualError):
    """A thread, a socket or a process: it would run in real time, and the virtual clock would not wait for it."""


class OutOfTime(VirtualError, TimeoutError):
    """The run did not finish within its limit of virtual seconds, or within that of real ones."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in which waiting takes no time.

    `now` is the clock (s, from 0); a step beyond `limit` raises OutOfTime; `random` is what the program draws
    from, and `seeds` gives a generator the seed that it was made without. Another thread may set `interrupt`: it is
    raised from the loop between two rounds of callbacks. So is OutOfTime, beyond `until`, and again if a task will not
    end then.
    """

    mode = "VIRTUAL"  # what an experiment on this loop calls itself
    _scheduled: list[asyncio.TimerHandle]  # BaseEventLoop's heap of timers, the earliest first

    def __init__(self, seed: int, limit: float | None) -> None:
        super().__init__()
        self.now = 0.0
        self.epoch = EPOCH  # time.time() at 0; to assign it is a step of the wall clock, which moves no timer
        self.limit = math.inf if limit is None else limit
        self.random, self.seeds = random.Random(f"program {seed}"), random.Random(f"seeds {seed}")
        self.numpy: Any = None  # what numpy's own functions draw from, made when they first do
        self.interrupt: BaseException | None = None
        self.until = math.inf  # by the real clock (time.monotonic, s): then nobody else is there to interrupt
        self.main_runs = False  # while it does, nobody else ends the loop
        self._selector = self  # the loop asks its selector to wait for the next timer
        numbers = itertools.count(1)
        self.set_task_factory(lambda loop, coro, **options: _Task(next(numbers), coro, loop=loop, **options))

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> None:
        """Instead of waiting until something happens, move the clock to where it does; `timeout` 0: it does now."""
        if self.until < math.inf and real_monotonic() > self.until:
            self.until = real_monotonic() + CLEAN_UP  # from here on the run is only cleaned up, and no longer than that
            self.interrupt = OutOfTime(f"not finished in its real time, at {self.now:.3f} virtual seconds")
        if self.interrupt is not None:
            error, self.interrupt = self.interrupt, None
            if isinstance(error, OutOfTime):
                error.add_note(waiting(self))
            raise error
        if timeout == 0 and self.now <= self.limit:
            return
        if timeout != 0 and not (self._scheduled and self._scheduled[0].when() < math.inf):
            timer = "no timer ever comes" if self._scheduled else "no timer is set"
            raise VirtualDeadlock(f"at {self.now:.3f} s nothing is ready and {timer}\n{waiting(self)}")
        then = self.now if timeout == 0 else max(self.now, self._scheduled[0].when())
        if then > self.limit + TINY:
            limit, self.limit = self.limit, math.inf  # from here on the run is only cleaned up
            self.move(max(self.now, limit))
            raise OutOfTime(f"not finished after {limit:g} virtual seconds\n{waiting(self)}")
        self.move(then)

    def move(self, then: float) -> None:
        """Set the clock, and how exact it is: a timer due now must count as due, however late it is."""
        self.now, self._clock_resolution = then, max(TINY, math.ulp(then))

    def stop(self) -> None:
        """End the loop, as asyncio does once the main task has ended; VirtualError, from the loop too, before that."""
        if self.main_runs:
            self.interrupt = VirtualError(f"at {self.now:.3f} s the program stopped the loop that it runs in")
            raise self.interrupt
        super().stop()

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

        If it sleeps, only its own result is late by as much, as with a thread. What it does, it does at the start. Of
        asyncio's threads there are as many as are asked for; of anyio's, and so for `def` endpoints, 40 as in reality.
        """
        future: asyncio.Future[T] = self.create_future()
        start = self.now
        try:
            settle = functools.partial(future.set_result, func(*args))
        except Exception as error:
            settle = functools.partial(future.set_exception, error)
        slept = self.now - start
        self.move(start)
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


def enter(loop: VirtualLoop | None) -> None:
    """Make the calling thread the one that lives in `loop`'s time; None: in real time again."""
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
        for name, virtual_now in (("now", _now), ("utcnow", _utcnow)):
            real_now = _set_builtin(datetime.datetime, name, classmethod(_by_thread_and_class(name, virtual_now)))
            undo.callback(_set_builtin, datetime.datetime, name, real_now)
        yield


def _by_thread(real: Callable[..., Any], virtual: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(*args: Any, **options: Any) -> Any:
        loop = _this_thread.loop
        return real(*args, **options) if loop is None else virtual(loop, *args, **options)

    return call


def _replacements() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    yield time, "time", _time
    yield time, "time_ns", lambda loop: loop.epoch * 10**9 + round(loop.now * 1e9)
    for name in ("monotonic", "perf_counter"):
        yield time, name, lambda loop: loop.now
        yield time, f"{name}_ns", lambda loop: round(loop.now * 1e9)
    for name in ("gmtime", "localtime", "ctime"):
        yield time, name, functools.partial(_broken_down, getattr(time, name))
    yield time, "asctime", functools.partial(_written, time.asctime, time.localtime)
    yield time, "strftime", functools.partial(_written, time.strftime, time.localtime)
    if hasattr(time, "clock_gettime"):  # Unix
        yield time, "clock_gettime", functools.partial(_clock, time.clock_gettime, 1)
        yield time, "clock_gettime_ns", functools.partial(_clock, time.clock_gettime_ns, 10**9)
    yield time, "sleep", _sleep
    yield os, "urandom", lambda loop, size: loop.random.randbytes(size)  # uuid
    yield random, "_urandom", lambda loop, size: loop.random.randbytes(size)  # random.SystemRandom, hence secrets
    yield random.Random, "seed", functools.partial(_seed, random.Random.seed)
    yield uuid, "uuid1", lambda loop, *_, **__: loop.escape("a UUID of this machine and moment")
    if "numpy" in sys.modules:
        numpy: Any = importlib.import_module("numpy.random")  # numpy itself loads it late
        aliases = {"ranf": "random_sample", "sample": "random_sample", "seed": "seed"}
        for name in numpy.__all__:
            if name in aliases or isinstance(getattr(numpy, name), types.MethodType):
                yield numpy, name, functools.partial(_draw_numpy, numpy.RandomState, aliases.get(name, name))
    for name in random.__all__:
        if isinstance(getattr(random, name), types.MethodType | types.BuiltinFunctionType):
            yield random, name, functools.partial(_draw, name)
    yield anyio.to_thread, "run_sync", _run_sync
    yield threading.Thread, "start", lambda loop, *_: loop.escape("a thread")
    yield threading.Condition, "wait", functools.partial(_wait, threading.Condition.wait)
    yield socket.socket, "__init__", lambda loop, *_, **__: loop.escape("a socket")
    yield socket, "getaddrinfo", lambda loop, *_, **__: loop.escape("a name lookup")
    yield subprocess.Popen, "__init__", lambda loop, *_, **__: loop.escape("a process")


def _time(loop: VirtualLoop) -> float:
    return loop.epoch + loop.now


def _broken_down(real: Callable[[float], Any], loop: VirtualLoop, seconds: float | None = None) -> Any:
    return real(_time(loop) if seconds is None else seconds)


def _written(real: Callable[..., str], local: Callable[[float], Any], loop: VirtualLoop, *args: Any) -> str:
    given = args if args and not isinstance(args[-1], str) else (*args, local(_time(loop)))
    return real(*given)


def _clock(real: Callable[[int], float], unit: int, loop: VirtualLoop, number: int) -> float:
    """time.clock_gettime: whatever runs with the world's time is virtual; what counts CPU time is not."""
    if number == time.CLOCK_REALTIME:
        moment = _time(loop)
    elif number in {getattr(time, f"CLOCK_{name}", None) for name in ("MONOTONIC", "MONOTONIC_RAW", "BOOTTIME")}:
        moment = loop.now
    else:
        return real(number)
    return moment if unit == 1 else round(moment * unit)


def _seed(real: Callable[..., None], loop: VirtualLoop, it: random.Random, a: Any = None, version: int = 2) -> None:
    real(it, loop.seeds.getrandbits(128) if a is None else a, version)


def _draw_numpy(make: Callable[[int], Any], name: str, loop: VirtualLoop, *args: Any, **options: Any) -> Any:
    if loop.numpy is None:
        loop.numpy = make(loop.seeds.getrandbits(32))
    return getattr(loop.numpy, name)(*args, **options)


def _now(cls: type[datetime.datetime], loop: VirtualLoop, tz: datetime.tzinfo | None = None) -> datetime.datetime:
    return cls.fromtimestamp(_time(loop), tz)


def _utcnow(cls: type[datetime.datetime], loop: VirtualLoop) -> datetime.datetime:
    return cls.fromtimestamp(_time(loop), datetime.UTC).replace(tzinfo=None)


def _by_thread_and_class(name: str, virtual: Callable[..., Any]) -> Callable[..., Any]:
    real = vars(datetime.datetime)[name]

    def call(cls: type[datetime.datetime], *args: Any, **options: Any) -> Any:
        loop = _this_thread.loop
        return real.__get__(None, cls)(*args, **options) if loop is None else virtual(cls, loop, *args, **options)

    return call


def _set_builtin(owner: type, name: str, value: Any) -> Any:
    """Set a method of a class written in C, which Python itself refuses to; return what stood there.

    Whoever took the class by `from datetime import datetime` is reached only so. The class's dictionary is the one
    thing that its read-only view refers to.
    """
    [methods] = gc.get_referents(vars(owner))
    was, methods[name] = methods[name], value
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))  # else a cached lookup goes on finding the old one
    return was


def _sleep(loop: VirtualLoop, seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    if not seconds < math.inf:
        raise OverflowError("timestamp out of range for platform time_t")  # as the real one says
    loop.move(loop.now + seconds)  # and nothing runs meanwhile: that is what a blocked loop is


def _draw(name: str, loop: VirtualLoop, *args: Any, **options: Any) -> Any:
    return getattr(loop.random, name)(*args, **options)


async def _run_sync(
    loop: VirtualLoop,
    func: Callable[[*Ts], T],
    *args: *Ts,
    abandon_on_cancel: bool = False,
    limiter: anyio.CapacityLimiter | None = None,
    **_: object,
) -> T:
    """anyio.to_thread.run_sync, by which frameworks run what is not async: 40 at a time, unless anyio is told other."""
    async with limiter or anyio.to_thread.current_default_thread_limiter():
        done = loop.run_in_executor(None, lambda: contextvars.copy_context().run(func, *args))
        with anyio.CancelScope(shield=not abandon_on_cancel):
            await asyncio.wait([done])
    return done.result()


def _wait(real: Callable[..., bool], loop: VirtualLoop, condition: object, timeout: float | None = None) -> bool:
    if real(condition, PATIENCE if timeout is None else min(timeout, PATIENCE)):
        return True  # another thread answered: no virtual time passed
    if timeout is None or timeout > 0:
        loop.escape("waiting for another thread")
    return False
