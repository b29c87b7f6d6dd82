"""Run a program in virtual time: its servers and clients as they are, in one thread, over a simulated network.

async def main(net): ...                             # servers by serve(app), clients as usual
result = run_virtual(main, link=Link(delay=0.025))   # from a script, a test or a notebook cell

caller ──▶ a thread of its own: loop, clock, network ──▶ main(net) ──▶ result, or what it raised
   └─ waits; on Ctrl-C or past `wall` it asks the loop, then interrupts the thread, then leaves it

Where threads cannot start, in a browser's Python, the run takes the caller's own thread, and looks at `wall` by itself.
"""

import asyncio
import contextlib
import ctypes
import math
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, MutableSet
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import uvicorn

from lab.virtual.clock import CLEAN_UP, OutOfTime, VirtualError, enter, inside, patched
from lab.virtual.network import Link, Net, NetworkLoop
from lab.virtual.transport import Way
from servers.background import Silence
from servers.feed import HEARTBEAT
from servers.limits import check_finite, check_positive
from servers.on_uvicorn import uvicorn_options

TICK = 0.1  # seconds between two looks of uvicorn's at its `should_exit`: the time streams get to end by themselves

T = TypeVar("T")
App = TypeVar("App")

_one_at_a_time = threading.Lock()
_threads = sys.platform != "emscripten"


def run_virtual(
    main: Callable[[Net], Coroutine[Any, Any, T]],
    *,
    link: Link | None = None,
    seed: int = 1,
    limit: float | None = None,
    wall: float = 60.0,
    cpu: float = math.inf,
) -> T:
    """Run `main(net)` in virtual time and return its result, or raise what it raised.

    `link` is the path between clients and servers unless `net.via` names another. Beyond `limit` (virtual seconds) or
    `wall` (real seconds) it raises OutOfTime, a TimeoutError that names the tasks and where they wait. Waiting for
    nothing is a VirtualDeadlock at once, unless something still ticks, such as a heartbeat: then `limit` ends it.

    So it does beyond `cpu`, seconds of processor time, which a busy machine does not shorten (where the system does not
    tell them: seconds). Both hold whatever the program does. A loop of awaits is stopped between two of them; a loop
    without any, a second later, by an exception raised in its thread. Only a call into C that does not return cannot
    be stopped: its thread is left behind, and the error says so. Raises ValueError for a limit that is no number.
    """
    check_positive(wall=wall)
    check_positive(cpu=cpu, infinite=True)
    if limit is not None:
        check_finite(limit=limit)
    if inside():
        raise VirtualError("run_virtual was called inside a virtual run: it has one already")
    with _one_at_a_time, patched():
        loop = NetworkLoop(link or Link(), seed, limit)
        outcome: Future[T] = Future()
        if not _threads:
            loop.until = time.monotonic() + min(wall, cpu)
            with _loop_put_aside():
                _work(loop, main, outcome)
            return outcome.result()
        clock: Future[int] = Future()
        thread = threading.Thread(target=_work_beside, args=(loop, main, outcome, clock), name="virtual", daemon=True)
        try:
            thread.start()  # inside: Ctrl-C may come while it returns
            begin = time.monotonic()
            while not outcome.done():
                wait([outcome], timeout=0.1)  # a long wait could not be interrupted by Ctrl-C on Windows
                if outcome.done():
                    break
                if (spent := time.monotonic() - begin) > wall:
                    raise OutOfTime(f"not finished after {wall:g} real seconds, at {loop.now:.3f} virtual seconds")
                if spent > cpu and _processor_time(clock) > cpu:
                    raise OutOfTime(f"not finished after {cpu:g} s of work, at {loop.now:.3f} virtual seconds")
        except BaseException as reason:
            _stop(thread, loop, outcome, reason)
            raise reason from _where(outcome)
        thread.join()
        return outcome.result()


def _processor_time(clock: Future[int]) -> float:
    """The seconds that a thread has worked, by the clock that it has named; infinite where there is no such clock."""
    try:
        return time.clock_gettime(clock.result(timeout=0)) if clock.done() else 0.0
    except OSError:  # the thread has ended
        return 0.0
    except AttributeError:  # not on this system
        return math.inf


def _work_beside(
    loop: NetworkLoop, main: Callable[[Net], Coroutine[Any, Any, T]], outcome: Future[T], clock: Future[int]
) -> None:
    """In a thread of its own, whose clock it names."""
    try:
        clock.set_result(time.pthread_getcpuclockid(threading.get_ident()))
    except AttributeError as missing:  # not on this system
        clock.set_exception(missing)
    _work(loop, main, outcome)


def _work(loop: NetworkLoop, main: Callable[[Net], Coroutine[Any, Any, T]], outcome: Future[T]) -> None:
    enter(loop)
    ended: Future[T] = Future()

    async def job() -> None:
        # A task that fails while the loop itself raises would be reported as forgotten; this one does not fail.
        loop.main_runs = True
        try:
            ended.set_result(await main(loop.net))
        except BaseException as error:
            ended.set_exception(error)
        loop.net.recording = loop.main_runs = False

    try:
        with contextlib.closing(loop.net), asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(job())
        result = ended.result()
    except BaseException as error:
        outcome.set_exception(error)
    else:
        outcome.set_result(result)
    finally:
        enter(None)


@contextlib.contextmanager
def _loop_put_aside() -> Iterator[None]:
    """Meanwhile this thread has no running event loop, so that another can run in it."""
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(running)


class _Interrupted(KeyboardInterrupt):
    """Raised in a virtual thread from outside; a KeyboardInterrupt because asyncio lets only those through."""


def _stop(thread: threading.Thread, loop: NetworkLoop, outcome: Future[T], reason: BaseException) -> None:
    """End a run from outside: by its loop, else by an exception in whatever it is doing, else not at all."""
    loop.interrupt = reason
    wait([outcome], timeout=1)
    if loop.interrupt is None:
        wait([outcome], timeout=CLEAN_UP)  # it has noticed
    loop.interrupt = None
    for _ in range(3):
        if outcome.done():
            thread.join()
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Interrupted))
        wait([outcome], timeout=1)
    if not outcome.done():
        reason.add_note("The thread could not be stopped and was left behind: it is in a call that does not return.")


def _where(outcome: Future[T]) -> BaseException | None:
    """The interruption, with the traceback of what it interrupted."""
    error = outcome.exception() if outcome.done() else None
    return error if isinstance(error, _Interrupted) else None


@dataclass
class Served(Generic[App]):
    """A server in a virtual run: where it is and what it serves."""

    url: str
    app: App
    net: Net
    address: tuple[str, int]

    @property
    def bytes(self) -> dict[Way, int]:
        """The bytes sent so far in each direction over this server's connections, as Net counts them."""
        mine = [c for c in self.net.connections if c.server == self.address]
        return {"up": sum(c.up for c in mine), "down": sum(c.down for c in mine)}


@contextlib.asynccontextmanager
async def serve(app: App, port: int = 80, host: str = "server", **uvicorn_config: Any) -> AsyncIterator[Served[App]]:
    """Serve an ASGI application by uvicorn at http://host:port while the block runs; options as uvicorn.Config's.

    uvicorn is as it is, except that it waits for the end instead of looking ten times a second: `limit_max_requests`
    is ignored, and the Date header keeps the time of the start. At the end the application closes its own streams
    (`app.closing.close()` or `app.state.closing.close()`, if it has that), and uvicorn stops a tick later.
    Raises VirtualError if the server does not start.
    """
    heartbeat, front = getattr(app, "heartbeat", HEARTBEAT), getattr(app, "front", None)
    options = uvicorn_options(heartbeat, front) | uvicorn_config
    server = _Server(uvicorn.Config(app, host=host, port=port, **options))  # type: ignore[arg-type]  # App is any ASGI application
    with contextlib.closing(Silence(threading.get_ident())):  # what a black hole makes of a shutdown is no news
        task = asyncio.create_task(server.serve_or_fail(), name=f"server {host}:{port}")
        ready = asyncio.create_task(server.ready.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if task.done():
            task.result()
        try:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, NetworkLoop)
            yield Served(f"http://{host}" if port == 80 else f"http://{host}:{port}", app, loop.net, (host, port))
        finally:
            closing = getattr(app, "closing", None) or getattr(getattr(app, "state", None), "closing", None)
            if closing is not None:
                closing.close()
                await asyncio.sleep(TICK)
            server.stop.set()
            await task


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready, self.stop = asyncio.Event(), asyncio.Event()
        state: Any = self.server_state
        state.connections, state.tasks = _Ordered(), _Ordered()

    async def serve_or_fail(self) -> None:
        try:
            await self.serve()
        except SystemExit as refusal:  # uvicorn's way to say so; it would end the loop
            where = f"{self.config.host}:{self.config.port}"
            raise VirtualError(f"no server at {where}: the address is in use, or the lifespan failed") from refusal

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self.ready.set()
        await self.stop.wait()
        self.should_exit = True


class _Ordered(MutableSet[Any]):
    """A set in order of arrival: uvicorn closes its connections in the order of this set, which must not vary."""

    def __init__(self) -> None:
        self._items: dict[Any, None] = {}

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, value: Any) -> None:
        self._items[value] = None

    def discard(self, value: Any) -> None:
        self._items.pop(value, None)
