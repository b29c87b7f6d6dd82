"""The virtual-time bench: its clock, its network, its runs, and real servers and clients on it."""

import asyncio
import contextlib
import datetime
import functools
import hashlib
import inspect
import math
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import anyio
import httpx
import numpy as np
import psutil
import pytest
import websockets
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from httpx_sse import aconnect_sse
from sse_starlette import EventSourceResponse, ServerSentEvent

from lab.virtual import (
    EscapedVirtualTime,
    Link,
    Net,
    OutOfTime,
    Row,
    VirtualDeadlock,
    VirtualError,
    Way,
    clock,
    run,
    run_virtual,
    serve,
)
from servers import long_polling
from servers.feed import Feed

D = 0.025  # the default link's delay
WS = "ws://server/ws"
taken = datetime.datetime  # as by `from datetime import datetime`

S = TypeVar("S")
T = TypeVar("T")


class Own(datetime.datetime):
    """A class of one's own that inherits `now`."""


def virtual(**options: Any) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Make a test of a coroutine: it runs in virtual time, and the run's network is its parameter `net`."""

    def decorate(main: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @functools.wraps(main)
        def test(**parameters: Any) -> None:
            run_virtual(lambda net: main(net, **parameters), **options)

        signature = inspect.signature(main)
        others = [parameter for name, parameter in signature.parameters.items() if name != "net"]
        test.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]  # what pytest reads
        return test

    return decorate


def at(moment: float) -> Any:
    """That moment, up to float rounding."""
    return pytest.approx(moment, rel=0, abs=1e-9)


def now() -> float:
    return asyncio.get_running_loop().time()


def browser(**options: Any) -> httpx.AsyncClient:
    """An HTTP client of the server at http://server."""
    return httpx.AsyncClient(base_url="http://server", verify=False, trust_env=False, **options)


def make_app() -> FastAPI:
    """One small server with every way to deliver; a message is the moment (s) at which it was sent."""
    app = FastAPI()
    app.state.requests = 0
    app.state.left = []

    @app.get("/")
    async def root(request: Request) -> dict[str, Any]:
        app.state.requests += 1
        return {"client": request.client.host if request.client else None, "at": time.perf_counter()}

    @app.get("/def")
    def in_a_thread(sleep: float = 0) -> float:
        time.sleep(sleep)
        return time.perf_counter()

    @app.get("/blocking")
    async def blocks_the_loop() -> float:
        time.sleep(3)  # noqa: ASYNC251  # the mistake whose effect is tested
        return time.perf_counter()

    @app.get("/events")
    async def events(n: int = 10, every: float = 1) -> EventSourceResponse:
        async def stream() -> AsyncIterator[dict[str, str]]:
            for _ in range(n):
                yield {"data": repr(time.perf_counter())}
                await asyncio.sleep(every)

        return EventSourceResponse(stream(), ping_message_factory=lambda: ServerSentEvent(comment="ping"))

    @app.websocket("/ws")
    async def messages(ws: WebSocket, n: int = 10, every: float = 1) -> None:
        await ws.accept()
        try:
            for _ in range(n):
                await ws.send_text(repr(time.perf_counter()))
                await asyncio.sleep(every)
            await ws.close()
        except WebSocketDisconnect:
            app.state.left.append(time.perf_counter())

    return app


class Joined(NamedTuple):
    """Both ends of one connection."""

    client_in: asyncio.StreamReader
    client_out: asyncio.StreamWriter
    server_in: asyncio.StreamReader
    server_out: asyncio.StreamWriter


@contextlib.asynccontextmanager
async def joined() -> AsyncIterator[Joined]:
    """A fresh connection, settled at both ends."""
    accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with await asyncio.start_server(lambda *ends: accepted.set_result(ends), "raw", 0) as server:
        reader, writer = await asyncio.open_connection("raw", server.sockets[0].getsockname()[1])
        ends = Joined(reader, writer, *await accepted)
        try:
            yield ends
        finally:
            ends.client_out.transport.abort()
            ends.server_out.transport.abort()


async def both_of(one: Awaitable[T], other: Awaitable[S]) -> tuple[T, S]:
    """The results of two things done at once."""
    first, second = await asyncio.gather(one, other)
    return first, second


async def read_all(reader: asyncio.StreamReader) -> tuple[bytes, type[Exception] | None, float]:
    """Everything until the stream ends: the bytes, the error that ended it, and when."""
    data = b""
    try:
        while piece := await reader.read(1000):
            data += piece
    except OSError as error:
        return data, type(error), now()
    return data, None, now()


async def delays_of(out: asyncio.StreamWriter, into: asyncio.StreamReader, n: int, every: float) -> list[float]:
    """The delays (s) of n numbered messages, which must arrive whole and in order."""

    async def send() -> None:
        for number in range(n):
            out.write(f"{number} {now()!r}\n".encode())
            await asyncio.sleep(every)

    delays = []
    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        for expected in range(n):
            number, sent = (await into.readline()).split()
            assert int(number) == expected
            delays.append(now() - float(sent))
    return delays


# The clock


@virtual()
async def test_waiting_takes_no_time_and_ends_at_the_exact_moment(net: Net) -> None:
    """The clock starts at 0 and stands at each timer's own moment when it fires, whatever number of hours later."""
    assert now() == 0
    for _ in range(3600):
        await asyncio.sleep(1)
    assert now() == 3600
    await asyncio.sleep(10 * 365 * 86400)
    assert now() == 3600 + 10 * 365 * 86400


@virtual()
async def test_every_clock_of_the_time_module_is_the_virtual_one(net: Net) -> None:
    """time.time, monotonic, perf_counter and their _ns forms read the loop's clock."""
    await asyncio.sleep(1.5)
    assert time.monotonic() == time.perf_counter() == now() == 1.5
    assert time.monotonic_ns() == time.perf_counter_ns() == 1_500_000_000
    assert time.time() == clock.EPOCH + 1.5
    assert time.time_ns() == clock.EPOCH * 10**9 + 1_500_000_000


@virtual()
async def test_every_date_is_the_virtual_one(net: Net) -> None:
    """What tells the date without being given a moment tells the virtual one, under whatever name it was taken."""
    await asyncio.sleep(1.5)
    moment = clock.EPOCH + 1.5
    assert (time.gmtime(), time.localtime(), time.ctime()) == (
        time.gmtime(moment),
        time.localtime(moment),
        time.ctime(moment),
    )
    assert time.asctime() == time.ctime(moment)
    assert time.strftime("%F %T") == time.strftime("%F %T", time.localtime(moment))
    assert (time.gmtime(0).tm_year, time.strftime("%Y", time.gmtime(0)), time.asctime(time.gmtime(0))[-4:]) == (
        1970,
        "1970",
        "1970",
    )
    assert time.clock_gettime(time.CLOCK_REALTIME) == moment
    assert time.clock_gettime_ns(time.CLOCK_REALTIME) == time.time_ns()
    assert time.clock_gettime(time.CLOCK_MONOTONIC) == 1.5
    for kind in (taken, Own):
        assert kind.now() == kind.today() == kind.fromtimestamp(moment)
        assert kind.now(datetime.UTC) == kind.now(tz=datetime.UTC) == kind.fromtimestamp(moment, datetime.UTC)
        assert type(kind.now()) is kind
    assert taken.utcnow() == datetime.datetime(2024, 11, 22, 20, 0, 1, 500000)
    assert datetime.date.today() == taken.now().date()


def test_dates_are_real_again_after_a_run_and_in_other_threads() -> None:
    """A run takes nothing away from the class that it shares with everybody."""
    seen: list[datetime.datetime] = []
    asked, answered = threading.Event(), threading.Event()

    def other() -> None:
        assert asked.wait(60)
        seen.append(taken.now())
        answered.set()

    async def main(net: Net) -> None:
        asked.set()
        answered.wait()

    thread = threading.Thread(target=other)
    thread.start()
    run_virtual(main)
    thread.join()
    assert all(abs(moment.timestamp() - time.time()) < 300 for moment in (*seen, taken.now(), Own.now()))


@virtual()
async def test_a_blocking_sleep_moves_the_clock_and_nothing_runs_meanwhile(net: Net) -> None:
    """time.sleep in a coroutine makes every timer of the loop late."""
    ticks = []

    async def tick() -> None:
        while True:
            await asyncio.sleep(1)
            ticks.append(now())

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(2.5)
    time.sleep(3)  # noqa: ASYNC251  # the mistake whose effect is tested
    await asyncio.sleep(1.2)
    ticker.cancel()
    assert ticks == [1, 2, 5.5, 6.5]
    with pytest.raises(ValueError, match="non-negative"):
        time.sleep(-1)  # noqa: ASYNC251  # refused as by the real one
    with pytest.raises(OverflowError, match="out of range"):
        time.sleep(float("inf"))  # noqa: ASYNC251  # refused as by the real one


@virtual()
async def test_work_for_a_thread_runs_inline_and_only_its_own_result_is_late(net: Net) -> None:
    """asyncio.to_thread and run_in_executor give what the function gives, after the time that it slept."""

    def work(seconds: int) -> tuple[int, str]:
        time.sleep(seconds)
        return seconds, threading.current_thread().name

    async with asyncio.timeout(3):
        results = await asyncio.gather(*(asyncio.to_thread(work, seconds) for seconds in (1, 2, 0)))
    assert results == [(1, "virtual"), (2, "virtual"), (0, "virtual")]
    assert now() == 2
    with pytest.raises(ZeroDivisionError):
        await asyncio.get_running_loop().run_in_executor(None, lambda: 1 / 0)


def test_other_threads_keep_real_time_and_their_own_random_numbers() -> None:
    """A run changes time and random for its own thread only."""
    asked, answered = threading.Event(), threading.Event()
    seen: dict[str, float] = {}

    def other() -> None:
        assert asked.wait(60)
        random.seed(42)
        began = time.monotonic()
        time.sleep(0.01)
        seen.update(time=time.time(), random=random.random(), slept=time.monotonic() - began)
        answered.set()

    async def main(net: Net) -> tuple[float, float]:
        asked.set()
        answered.wait()  # another thread may answer: see clock.PATIENCE
        return random.random(), now()

    thread = threading.Thread(target=other)
    thread.start()
    drawn, moment = run_virtual(main)
    thread.join()
    assert abs(seen["time"] - time.time()) < 300  # the virtual time is years away
    assert seen["slept"] >= 0.01
    assert seen["random"] == random.Random(42).random() != drawn
    assert moment == 0


def test_randomness_follows_the_seed_and_is_left_as_it_was() -> None:
    """random, secrets, uuid, os.urandom and numpy repeat with the seed, differ with another, and stay random outside.

    So does a generator that is made, or seeded again, without a seed.
    """

    async def main(net: Net) -> tuple[Any, ...]:
        again = random.Random(3)
        again.seed()
        numpy = np.random.random(), np.random.sample(), np.random.default_rng().random(), np.random.RandomState().rand()
        made = random.Random().random(), random.SystemRandom().random(), again.random()
        return (
            *(random.random(), random.choice(range(10**9)), secrets.token_hex(8), uuid.uuid4(), os.urandom(4)),
            *(numpy + made),
        )

    async def seeded(net: Net) -> tuple[float, ...]:
        np.random.seed(7)
        return random.Random(3).random(), np.random.random(), np.random.RandomState(7).random()

    random.seed(5)
    first, second, other = run_virtual(main), run_virtual(main), run_virtual(main, seed=2)
    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert random.random() == random.Random(5).random()
    assert secrets.token_hex(8) != secrets.token_hex(8)
    own, numpy, *same = run_virtual(seeded)
    assert (own, [numpy]) == (random.Random(3).random(), same)


def test_nothing_stays_patched() -> None:
    """After a run, even one that failed, every function is the original one."""

    def functions() -> list[Any]:
        replaced = [getattr(owner, name) for owner, name, _ in clock._replacements()]
        return [*replaced, *(vars(datetime.datetime)[name] for name in ("now", "utcnow"))]

    async def main(net: Net) -> None:
        assert time.monotonic not in before
        raise KeyError("any")

    before = functions()
    with pytest.raises(KeyError, match="any"):
        run_virtual(main)
    assert time.monotonic in before
    assert functions() == before


# What ends a run


def test_the_result_and_the_error_of_main_come_out_as_they_are() -> None:
    """run_virtual returns what main returns and raises what main raises."""

    async def good(net: Net) -> dict[str, int]:
        return {"answer": 42}

    async def bad(net: Net) -> None:
        await asyncio.sleep(1)
        raise LookupError("not here")

    assert run_virtual(good) == {"answer": 42}
    with pytest.raises(LookupError, match="not here"):
        run_virtual(bad)


def test_tasks_that_main_leaves_behind_are_cancelled_and_clean_up() -> None:
    """A task still running when main returns gets its finally, with the clock going on; nothing is recorded then."""
    ended = []

    async def left() -> None:
        async with joined() as ends:
            try:
                await asyncio.sleep(1000)
            finally:
                ends.client_out.write(b"bye")
                await ends.server_in.readexactly(3)
                ended.append(now())

    async def main(net: Net) -> Net:
        task = asyncio.create_task(left())
        await asyncio.sleep(1)
        assert not task.done()
        return net

    net = run_virtual(main)
    assert ended == [at(1 + D)]
    assert (net.bytes["up"], len(net.transcript or [])) == (0, 1)


def test_a_deadlock_is_named_with_the_tasks_and_where_they_wait() -> None:
    """With nothing ready and no timer, VirtualDeadlock tells each task's place; a limit does not hide it."""

    async def forgotten() -> None:
        await asyncio.Event().wait()

    async def main(net: Net) -> None:
        await asyncio.sleep(2)
        await asyncio.gather(asyncio.create_task(forgotten(), name="lost one"))

    with pytest.raises(VirtualDeadlock) as caught:
        run_virtual(main, limit=100)
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["at 2.000 s nothing is ready and no timer is set", "tasks and where they wait:"]
    assert "main (test_virtual.py:" in lines[2]
    assert re.fullmatch(r"  lost one: forgotten \(test_virtual.py:\d+\) > wait \(locks.py:\d+\)", lines[3])


@pytest.mark.parametrize("forever", [anyio.sleep_forever, lambda: asyncio.sleep(math.inf)])
def test_a_sleep_for_ever_is_a_deadlock_at_once(forever: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A timer that never comes is none: the run ends when nothing else is left, and not after its wall limit."""

    async def main(net: Net) -> None:
        background = asyncio.create_task(forever())
        await asyncio.sleep(1e17)
        await background

    with pytest.raises(VirtualDeadlock, match=r"^at 1\d{17}\.000 s nothing is ready and no timer ever comes"):
        run_virtual(main, wall=50)


def test_an_idle_server_is_no_reason_to_go_on() -> None:
    """A served application sets no timer of its own: waiting beside it for nothing is a deadlock, found at once."""

    async def main(net: Net) -> None:
        async with serve(make_app()):
            await asyncio.Event().wait()

    with pytest.raises(VirtualDeadlock):
        run_virtual(main)


def test_the_limit_ends_a_run_at_that_virtual_moment() -> None:
    """What goes on beyond `limit` is ended then, cleaned up, and reported as OutOfTime, a TimeoutError."""
    ended = []

    async def main(net: Net, seconds: float) -> float:
        try:
            await asyncio.sleep(seconds)
            return now()
        finally:
            ended.append(now())

    with pytest.raises(
        TimeoutError, match=r"not finished after 10 virtual seconds\ntasks and where they wait:\n.*main"
    ):
        run_virtual(lambda net: main(net, 10.1), limit=10)
    assert ended == [10]
    assert run_virtual(lambda net: main(net, 10), limit=10) == 10


async def spins(net: Net) -> None:
    while True:  # noqa: ASYNC110  # a spin is what is tested
        await asyncio.sleep(0)


async def spins_and_ignores_cancellation(net: Net) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


async def never_awaits(net: Net) -> None:
    while True:
        pass


async def never_awaits_in_a_task(net: Net) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(never_awaits(net))


@pytest.mark.parametrize("main", [spins, spins_and_ignores_cancellation, never_awaits, never_awaits_in_a_task])
def test_the_wall_limit_ends_whatever_a_program_does(main: Callable[[Net], Coroutine[Any, Any, None]]) -> None:
    """`wall` real seconds end a spin that the clock does not see, with or without awaits, and its thread."""
    with pytest.raises(OutOfTime, match=r"not finished after 0.1 real seconds, at 0.000 virtual seconds"):
        run_virtual(main, wall=0.1)
    assert "virtual" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("main", [spins, spins_and_ignores_cancellation])
def test_without_a_thread_the_loop_ends_it(
    main: Callable[[Net], Coroutine[Any, Any, None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody else can, the loop looks at the clock, also while it cleans up; what comes after is in real time."""
    monkeypatch.setattr(run, "_threads", False)
    with pytest.raises(OutOfTime, match=r"not finished in its real time, at 0.000 virtual seconds"):
        run_virtual(main, wall=0.1)
    assert not clock.inside()


def test_the_wall_limit_tells_where_the_program_was() -> None:
    """OutOfTime names the tasks of a spinning loop, and shows the line of code that never awaits."""
    with pytest.raises(OutOfTime) as spinning:
        run_virtual(spins, wall=0.1)
    assert "spins (test_virtual.py:" in spinning.value.__notes__[0]
    with pytest.raises(OutOfTime) as busy:
        run_virtual(never_awaits, wall=0.1)
    assert busy.value.__cause__ is not None
    assert "never_awaits" in [frame.name for frame in traceback.extract_tb(busy.value.__cause__.__traceback__)]


ESCAPES: dict[str, Callable[[], object]] = {
    "a thread": lambda: threading.Thread(target=print).start(),
    "a socket": lambda: socket.socket(),
    "a name lookup": lambda: socket.create_connection(("localhost", 9), timeout=1),
    "a process": lambda: subprocess.run([sys.executable, "-V"], check=True),
    "waiting for another thread": lambda: threading.Event().wait(),
}


@pytest.mark.parametrize("what", ESCAPES)
@pytest.mark.parametrize("caught", [False, True], ids=["open", "swallowed"])
def test_what_would_run_in_real_time_fails_the_run(what: str, caught: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread, socket, process or wait for a thread is EscapedVirtualTime, even where the program catches it."""
    monkeypatch.setattr(clock, "PATIENCE", 0.05)  # nobody answers here: the wait need not be long

    async def main(net: Net) -> None:
        with contextlib.suppress(RuntimeError if caught else ZeroDivisionError):
            ESCAPES[what]()
        await asyncio.sleep(1)

    with pytest.raises(EscapedVirtualTime, match=f"^{what} inside a virtual run would run in real time$"):
        run_virtual(main)


def test_real_sockets_and_processes_of_asyncio_fail_the_run() -> None:
    """asyncio's own subprocesses, and a socket made outside and brought in, are refused too."""
    with socket.socket() as real:

        async def connects(net: Net) -> None:
            await asyncio.open_connection(sock=real)

        async def executes(net: Net) -> None:
            await asyncio.create_subprocess_exec(sys.executable, "-V")

        with pytest.raises(EscapedVirtualTime, match="a socket"):
            run_virtual(connects)
        with pytest.raises(EscapedVirtualTime, match="a process"):
            run_virtual(executes)


@pytest.mark.parametrize("later", [False, True])
def test_a_program_that_stops_its_loop_is_told_so(later: bool) -> None:
    """The loop ends with the main task: to stop it before is an error with a name, wherever it comes from."""

    async def main(_: Net) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(2)
        (loop.call_soon if later else call)(loop.stop)
        await asyncio.sleep(1)

    with pytest.raises(VirtualError, match=r"^at 2\.000 s the program stopped the loop that it runs in$"):
        run_virtual(main)
    assert run_virtual(one) == 1


def call(function: Callable[[], None]) -> None:
    """Do it here and now."""
    function()


async def one(_: Net) -> int:
    """The shortest program."""
    return 1


def test_a_run_inside_a_run_is_refused() -> None:
    """run_virtual cannot be called from virtual time."""

    async def main(net: Net) -> None:
        run_virtual(main)

    with pytest.raises(VirtualError, match="called inside a virtual run"):
        run_virtual(main)


def test_a_run_works_where_a_loop_is_running_already() -> None:
    """As in a notebook's cell, run_virtual is a plain call inside a coroutine."""

    async def main(net: Net) -> float:
        await asyncio.sleep(1e9)
        return now()

    async def cell() -> None:
        loop = asyncio.get_running_loop()
        assert run_virtual(main) == 1e9
        assert asyncio.get_running_loop() is loop
        before = time.monotonic()
        assert before <= now() <= time.monotonic()  # this loop's clock is the real one

    asyncio.run(cell())


def test_runs_leave_no_thread_and_no_file_behind() -> None:
    """After runs that end well, fail or are stopped, threads and file descriptors are as before."""

    async def serves(net: Net) -> None:
        async with serve(make_app()), browser() as http:
            await http.get("/def")
            await asyncio.sleep(1e9)

    def once() -> None:
        run_virtual(serves)
        for main in (spins, never_awaits):
            with pytest.raises(OutOfTime):
                run_virtual(main, wall=0.1)
        with pytest.raises(OutOfTime):
            run_virtual(serves, limit=10)

    once()  # what is opened once for all runs
    process = psutil.Process()
    before = process.num_fds(), threading.enumerate()
    once()
    assert (process.num_fds(), threading.enumerate()) == before


INTERRUPTED = """
import asyncio
from lab.virtual import run_virtual

async def main(net):
    try:
        print("running", flush=True)
        while True:
            {step}
    finally:
        print("cleaned up", flush=True)

try:
    run_virtual(main)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("step", ["await asyncio.sleep(1)", "pass"], ids=["awaits", "busy"])
def test_ctrl_c_ends_a_run(step: str) -> None:
    """SIGINT raises KeyboardInterrupt from run_virtual, once the program has cleaned up."""
    program = [sys.executable, "-c", INTERRUPTED.format(step=step)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("cleaned up\ninterrupted\n", "", 0)


# The network


@virtual()
async def test_a_message_arrives_after_exactly_one_delay(net: Net) -> None:
    """What is written arrives one delay later, both ways, in order; the handshake took three delays."""
    async with joined() as ends:
        assert now() == at(3 * D)  # SYN, SYN+ACK, and the ACK with which the server accepts
        for out, into in ((ends.client_out, ends.server_in), (ends.server_out, ends.client_in)):
            assert await delays_of(out, into, n=10, every=0.01) == [at(D)] * 10


@virtual(link=Link(delay=0.1, jitter=0.05))
async def test_jitter_keeps_within_its_bounds_and_keeps_the_order(net: Net) -> None:
    """With jitter J every delay is between d and d+J, and a late message holds up those behind it."""
    async with joined() as ends:
        delays = await delays_of(ends.server_out, ends.client_in, n=500, every=0.01)
    assert 0.1 - 1e-9 < min(delays) < 0.105
    assert 0.145 < max(delays) < 0.15 + 1e-9
    assert net.transcript is not None
    dues = [row.due for row in net.transcript if row.way == "down"]
    assert dues == sorted(dues)


@virtual(link=Link(delay=0.1, loss=0.3, rto=0.2))
async def test_a_lost_message_comes_one_timeout_later(net: Net) -> None:
    """Loss costs a timeout, as much again for the second (the first try is a probe), then doubled, and nothing else."""
    async with joined() as ends:
        delays = await delays_of(ends.server_out, ends.client_in, n=500, every=100)
    counts = Counter(round(delay, 9) for delay in delays)
    assert set(counts) <= {0.1, *(round(0.1 + 0.2 * 2**more, 9) for more in range(9))}
    assert 0.6 < counts[0.1] / 500 < 0.8  # 0.7, ten standard errors of 0.02 about it
    assert 0.1 < counts[0.3] / 500 < 0.3


@virtual(link=Link(delay=0.1, loss=0.3, rto=0.2))
async def test_a_lost_message_holds_up_those_behind_it(net: Net) -> None:
    """Messages sent within one timeout of a lost one arrive together with it, in order."""
    async with joined() as ends:
        delays = await delays_of(ends.server_out, ends.client_in, n=500, every=0.05)
    held_up = [delay for delay in delays if round(delay, 9) not in (0.1, 0.3, 0.5, 0.9, 1.7, 3.3)]
    assert len(held_up) > 100
    assert all((delay / 0.05) == pytest.approx(round(delay / 0.05)) for delay in held_up)


@virtual(link=Link(rate=1000))
async def test_a_rate_adds_the_time_that_the_bytes_take(net: Net) -> None:
    """At R bytes/s, n bytes arrive after n/R + d, and a second write waits for the first."""
    async with joined() as ends:
        sent = now()
        ends.server_out.write(bytes(500))
        ends.server_out.write(bytes(500))
        await ends.client_in.readexactly(500)
        assert now() == at(sent + 0.5 + D)
        await ends.client_in.readexactly(500)
        assert now() == at(sent + 1.0 + D)


@virtual(link=Link(window=1000))
async def test_a_window_limits_the_throughput_to_one_window_a_round_trip(net: Net) -> None:
    """Five windows take four round trips and a delay."""
    async with joined() as ends:
        sent = now()
        ends.server_out.write(bytes(5000))
        await ends.client_in.readexactly(5000)
        assert now() == at(sent + 4 * 2 * D + D)


@virtual(link=Link(window=10_000))
async def test_a_writer_blocks_at_window_and_buffer_until_the_reader_reads(net: Net) -> None:
    """Against a reader that pauses, what fills the window and the write buffer is taken, and no more."""
    async with joined() as ends:
        ends.client_out.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a WriteTransport
        ends.server_out.transport.set_write_buffer_limits(high=5000)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(40):
                ends.server_out.write(bytes(1000))
                await ends.server_out.drain()
                sent += 1000

        writing = asyncio.create_task(flood())
        await asyncio.sleep(100)
        assert sent == 10_000 + 5000  # the next thousand is in the buffer, above its limit
        assert net.bytes["down"] == 10_000
        ends.client_out.transport.resume_reading()  # type: ignore[attr-defined]  # as above
        await ends.client_in.readexactly(40_000)
        await writing
        assert now() < 101


@virtual()
async def test_a_half_closed_connection_still_answers(net: Net) -> None:
    """write_eof ends one direction only."""
    async with joined() as ends:
        ends.client_out.write(b"question")
        ends.client_out.write_eof()
        assert await ends.server_in.read() == b"question"
        await asyncio.sleep(10)
        ends.server_out.write(b"answer")
        ends.server_out.close()
        assert await ends.client_in.read() == b"answer"
        with pytest.raises(RuntimeError, match="after write_eof"):
            ends.client_out.write(b"more")


@virtual(link=Link(window=1000))
async def test_closing_sends_what_was_written_and_aborting_does_not(net: Net) -> None:
    """After close() the peer gets all of a write beyond the window; after abort() only the window, then the end."""
    for end, received in (("close", 3500), ("abort", 1000)):
        async with joined() as ends:
            ends.server_out.write(bytes(3500))
            getattr(ends.server_out.transport, end)()
            data, error, _ = await read_all(ends.client_in)
            assert (len(data), error) == (received, None)


@virtual()
async def test_closing_with_something_unread_is_a_reset(net: Net) -> None:
    """As with TCP, an end closed before it has read what arrived resets its peer instead of ending the stream."""
    async with joined() as ends:
        ends.server_out.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a WriteTransport
        ends.client_out.write(b"never read")
        await asyncio.sleep(1)
        ends.server_out.close()
        closed = now()
        assert await read_all(ends.client_in) == (b"", ConnectionResetError, at(closed + D))


@virtual()
async def test_a_server_that_closes_during_the_handshake_resets_the_connection(net: Net) -> None:
    """A client that was answered, but not yet accepted when the listener closed, is reset."""
    server = await asyncio.start_server(lambda r, w: pytest.fail("accepted"), "raw", 1)
    reader, writer = await asyncio.open_connection("raw", 1)
    server.close()
    assert await read_all(reader) == (b"", ConnectionResetError, at(4 * D))
    writer.close()


@virtual()
async def test_data_for_a_closed_end_is_answered_by_a_reset(net: Net) -> None:
    """As with TCP, writing to a peer that closed is ConnectionResetError one round trip later."""
    async with joined() as ends:
        ends.server_out.close()
        assert await ends.client_in.read() == b""
        ends.client_out.write(b"anybody?")
        await asyncio.sleep(2 * D - 1e-6)
        assert await ends.client_in.read() == b""
        await asyncio.sleep(2e-6)
        with pytest.raises(ConnectionResetError):
            await ends.client_in.read()


@virtual()
async def test_a_cut_resets_both_ends_at_once_and_drops_what_was_on_its_way(net: Net) -> None:
    """cut() is a ConnectionResetError at both ends at that moment; a new connection is whole."""
    async with joined() as ends:
        both = asyncio.create_task(both_of(read_all(ends.client_in), read_all(ends.server_in)))
        ends.server_out.write(b"arrives")
        await asyncio.sleep(10)
        ends.server_out.write(b"is on its way")
        ends.client_out.write(b"too")
        await asyncio.sleep(D / 2)
        net.link.cut()
        moment = at(now())
        assert await both == ((b"arrives", ConnectionResetError, moment), (b"", ConnectionResetError, moment))
        assert net.connections[0].closed == moment
        await asyncio.sleep(1)
        assert net.transcript is not None
        assert [(row.way, row.kind) for row in net.transcript[-2:]] == [("up", "RST"), ("down", "RST")]
    async with joined() as ends:
        assert await delays_of(ends.client_out, ends.server_in, n=3, every=1) == [at(D)] * 3


@virtual()
async def test_what_arrived_before_a_cut_can_still_be_read(net: Net) -> None:
    """A reader that was paused gets the bytes that had arrived, then the reset."""
    async with joined() as ends:
        ends.client_out.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a WriteTransport
        ends.server_out.write(b"in time")
        await asyncio.sleep(1)
        net.link.cut()
        await asyncio.sleep(1)
        ends.client_out.transport.resume_reading()  # type: ignore[attr-defined]  # as above
        assert (await read_all(ends.client_in))[:2] == (b"in time", ConnectionResetError)


@virtual()
async def test_a_writer_learns_of_a_cut_although_it_does_not_read(net: Net) -> None:
    """An end that is paused with something unread sees the reset as soon as it writes."""
    async with joined() as ends:
        ends.client_out.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a WriteTransport
        ends.server_out.write(b"unread")
        await asyncio.sleep(1)
        net.link.cut()
        assert not ends.client_out.is_closing()
        ends.client_out.write(b"x")
        with pytest.raises(ConnectionResetError):
            await ends.client_out.drain()


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("n", range(16))
@virtual()
async def test_cut_after_delivers_exactly_so_many_bytes(net: Net, way: Way, n: int) -> None:
    """cut_after(n) lets n bytes through, wherever n lies in the writes, then resets both ends; n may be 0."""
    writes = [b"a", b"bc", b"defg", b"hijklmno"]
    for asked_before in (True, False):  # that is, before the connection is opened
        if asked_before:
            net.link.cut_after(n, way)
        async with joined() as ends:
            if not asked_before:
                net.link.cut_after(n, way)
            up = way == "up"
            reading = asyncio.gather(read_all(ends.server_in), read_all(ends.client_in))
            for data in writes:
                (ends.client_out if up else ends.server_out).write(data)
                await asyncio.sleep(0.001)
            (at_server, server_error, reset), (at_client, client_error, reset_too) = await reading
            assert (at_server if up else at_client) == b"".join(writes)[:n]
            assert (at_client if up else at_server) == b""
            assert server_error is client_error is ConnectionResetError
            assert reset == reset_too


@virtual()
async def test_cut_after_counts_the_bytes_of_the_link_and_happens_once(net: Net) -> None:
    """All connections spend the same budget, all are cut, the next is whole, and a second call replaces the first."""
    async with joined() as one, joined() as two:
        net.link.cut_after(10)
        reading = asyncio.gather(read_all(one.client_in), read_all(two.client_in))
        one.server_out.write(b"123456")
        two.server_out.write(b"7890ab")
        assert [data for data, _, _ in await reading] == [b"123456", b"7890"]
    async with joined() as ends:
        ends.server_out.write(bytes(100))
        await ends.client_in.readexactly(100)
        net.link.cut_after(50)
        net.link.cut_after(2)
        ends.server_out.write(bytes(100))
        assert (await read_all(ends.client_in))[0] == bytes(2)


@pytest.mark.parametrize("dark", [("up",), ("down",), ()], ids=["up", "down", "both"])
@virtual()
async def test_a_black_hole_swallows_one_way_or_both_until_it_is_healed(net: Net, dark: tuple[Way, ...]) -> None:
    """Nothing arrives that way, nobody is told, and heal() delivers all of it one delay later, in order."""
    async with joined() as ends:
        received = {"up": b"", "down": b""}

        async def receive(way: Way, reader: asyncio.StreamReader) -> None:
            while data := await reader.read(100):
                received[way] += data

        receiving = asyncio.gather(receive("up", ends.server_in), receive("down", ends.client_in))
        net.link.blackhole(*dark)
        for message in (b"one ", b"two ", b"three"):
            ends.client_out.write(message)
            ends.server_out.write(message)
            await asyncio.sleep(100)
        for way, data in received.items():
            assert data == (b"" if way in (dark or received) else b"one two three")
        net.link.heal()
        await asyncio.sleep(D + 1e-6)
        assert received == {"up": b"one two three", "down": b"one two three"}
        receiving.cancel()


@virtual(link=Link(delay=1))
async def test_a_black_hole_takes_what_is_due_while_it_lasts(net: Net) -> None:
    """What is on its way when the link is healed arrives on time; what was due before comes one delay later."""
    async with joined() as ends:
        sent = now()
        ends.server_out.write(b"x")
        await asyncio.sleep(0.5)
        net.link.blackhole()
        await asyncio.sleep(0.2)
        net.link.heal()
        await ends.client_in.readexactly(1)
        assert now() == at(sent + 1)
        ends.server_out.write(b"y")
        await asyncio.sleep(0.5)
        net.link.blackhole("down")
        await asyncio.sleep(5)
        net.link.heal()
        healed = now()
        await ends.client_in.readexactly(1)
        assert now() == at(healed + 1)


@virtual()
async def test_a_half_open_connection_lives_for_the_end_that_was_not_told(net: Net) -> None:
    """An end closed in the dark is gone while its peer waits on, for a day; after healing the peer learns of it."""
    async with joined() as ends:
        net.link.blackhole("down")
        ends.server_out.close()
        reading = asyncio.create_task(read_all(ends.client_in))
        await asyncio.sleep(86400)
        assert not reading.done()
        net.link.heal()
        healed = now()
        assert await reading == (b"", None, at(healed + D))


@virtual(link=Link(window=1000), limit=200)
async def test_a_window_opens_again_after_a_black_hole(net: Net) -> None:
    """Bytes read in the dark are acknowledged once the link is whole: the sender does not wait for ever."""
    async with joined() as ends:
        net.link.blackhole("up")  # data arrives, acknowledgements do not
        ends.server_out.write(bytes(5000))
        await ends.client_in.readexactly(1000)
        await asyncio.sleep(100)
        assert net.bytes["down"] == 1000
        net.link.heal()
        await ends.client_in.readexactly(4000)


@virtual()
async def test_a_connection_is_refused_after_one_round_trip(net: Net) -> None:
    """Where nobody listens, connecting fails with ConnectionRefusedError at 2d, and so does httpx."""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("nobody", 80)
    assert now() == at(2 * D)
    async with browser() as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("/")
    assert now() == at(4 * D)
    assert net.connections == []


@virtual()
async def test_connecting_into_a_black_hole_times_out_as_on_linux(net: Net) -> None:
    """An unanswered SYN is repeated and given up after 131 s; httpx gives up after its 5 s; healing saves it."""
    async with serve(make_app()), browser() as http:
        net.link.blackhole("down")
        start = now()
        with pytest.raises(TimeoutError):
            await asyncio.open_connection("server", 80)
        assert now() == at(start + 131)
        with pytest.raises(httpx.ConnectTimeout):
            await http.get("/")
        assert now() == at(start + 131 + 5)
        asyncio.get_running_loop().call_later(2.5, net.link.heal)
        await http.get("/")
        assert now() == at(start + 131 + 5 + 3 + 4 * D)  # the SYN repeated after 3 s got through


@virtual()
async def test_a_port_is_taken_on_one_host_only(net: Net) -> None:
    """An address in use is refused, by the loop and by serve; another host's port 80, or another port, is free."""
    async with serve(make_app(), host="one") as one, serve(make_app(), 8080, "one") as two, browser() as http:
        assert (one.url, two.url) == ("http://one", "http://one:8080")
        async with serve(make_app(), host="two") as three:
            for server in (one, two, three):
                await http.get(server.url)
                assert server.app.state.requests == 1
        with pytest.raises(OSError, match="in use"):
            await asyncio.start_server(lambda r, w: None, "one", 80)
        with pytest.raises(VirtualError, match="no server at one:80: the address is in use"):
            async with serve(make_app(), host="one"):
                pass


def test_tls_is_refused_by_name() -> None:
    """https:// and wss:// are refused, and the error says what there is instead."""

    async def main(net: Net) -> None:
        await asyncio.open_connection("server", 443, ssl=True)

    with pytest.raises(VirtualError, match="TLS is not run here: use http:// and ws://, and Link"):
        run_virtual(main)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Link(delay=-1),
        lambda: Link(jitter=-1),
        lambda: Link(loss=1),
        lambda: Link(rate=0),
        lambda: Link(window=0),
        lambda: Link().blackhole("left"),  # type: ignore[arg-type]  # the mistake that is tested
        lambda: Link().cut_after(1, "left"),  # type: ignore[arg-type]  # the mistake that is tested
        lambda: Link().cut_after(-1),
        lambda: setattr(Link(), "delay", math.nan),
        lambda: setattr(Link(), "window", 1.5),
    ],
)
def test_a_link_that_cannot_be_is_refused(wrong: Callable[[], object]) -> None:
    """A negative time, certain loss, no rate, no window, an unknown way or a negative offset is a ValueError, also
    where it is assigned later."""
    with pytest.raises(ValueError, match=r" is a (whole )?number|a way is"):
        wrong()


@virtual()
async def test_each_client_may_have_its_own_link(net: Net) -> None:
    """net.via gives the connections opened in its block another path, whose name the server sees."""

    async def ask(link: Link) -> tuple[str, float]:
        start = now()
        with net.via(link):
            async with browser() as http:
                answer = await http.get("/")
        return answer.json()["client"], round(now() - start, 9)

    async with serve(make_app()):
        links = Link(delay=0.2, name="phone"), Link(delay=0.005, name="desk"), net.link
        assert await asyncio.gather(*map(ask, links)) == [("phone", 0.8), ("desk", 0.02), ("client", 0.1)]
    assert {connection.link for connection in net.connections} == set(links)


def test_a_link_is_new_in_the_next_run() -> None:
    """A live connection, a black hole and a cut to come do not reach the next run with the same Link."""
    default, other = Link(), Link()

    async def main(net: Net) -> float:
        for link in (default, other):
            with net.via(link):
                async with joined() as ends:
                    await delays_of(ends.server_out, ends.client_in, n=50, every=1)
                    link.cut_after(10)
                    link.blackhole()
        return now()

    assert run_virtual(main, link=default, limit=200) == run_virtual(main, link=default, limit=200)


@virtual()
async def test_bytes_and_transcript_say_what_went_over_the_network(net: Net) -> None:
    """Payload is counted by way and by connection, and each segment is a row; both stop when switched off."""
    async with joined() as one, joined():
        one.client_out.write(b"question")
        await one.server_in.readexactly(8)
        one.server_out.write(b"an answer")
        await one.client_in.readexactly(9)
        one.client_out.close()
        assert await one.server_in.read() == b""
        one.server_out.close()
        await asyncio.sleep(1)
        assert net.bytes == {"up": 8, "down": 9}
        first, second = net.connections
        assert (first.number, first.up, first.down, first.link) == (1, 8, 9, net.link)
        assert (second.number, second.up, second.down, second.closed) == (2, 0, 0, None)
        assert (first.opened, first.closed) == (at(2 * D), at(9 * D))
        assert net.transcript is not None
        assert [(row.connection, row.way, row.kind, row.data) for row in net.transcript] == [
            (1, "up", "OPEN", b""),
            (2, "up", "OPEN", b""),
            (1, "up", "DATA", b"question"),
            (1, "down", "DATA", b"an answer"),
            (1, "up", "FIN", b""),
            (1, "down", "FIN", b""),
        ]
        assert all(row.due == at(row.sent + D) for row in net.transcript)
        net.transcript = None
    async with joined() as one:
        one.client_out.write(b"more")
        await one.server_in.readexactly(4)
        assert (net.bytes["up"], net.transcript) == (12, None)


# Real servers and clients


@virtual()
async def test_a_cold_request_takes_four_transits_and_a_warm_one_two(net: Net) -> None:
    """A hundred polls over one kept connection cost exactly 2d each, as httpx's own stopwatch says too."""
    async with serve(make_app()) as server, browser() as http:
        response = await http.get("/")
        assert now() == at(4 * D)
        assert response.elapsed.total_seconds() == pytest.approx(4 * D, abs=1e-6)
        for i in range(1, 101):
            await asyncio.sleep(i * 4 - now())
            response = await http.get("/")
            assert now() == at(i * 4 + 2 * D)
            assert response.json()["at"] == at(i * 4 + D)
        assert server.app.state.requests == 101
        assert len(net.connections) == 1


@virtual()
async def test_httpx_sees_that_an_idle_connection_was_closed(net: Net) -> None:
    """A connection that the server closed while it was idle is not used again; one that it kept is."""
    kept = httpx.Limits(keepalive_expiry=None)
    async with serve(make_app(), timeout_keep_alive=5), browser(limits=kept) as http:
        for pause, connections in ((4, 1), (4, 1), (6, 1), (4, 2), (6, 2), (0, 3)):
            await http.get("/")
            assert len(net.connections) == connections
            await asyncio.sleep(pause)


@virtual()
async def test_a_poll_that_crosses_the_servers_goodbye_breaks(net: Net) -> None:
    """A request sent while the server's FIN is on its way fails: why the course's servers keep 75 s, not 5."""
    kept = httpx.Limits(keepalive_expiry=None)
    async with serve(make_app(), timeout_keep_alive=5), browser(limits=kept) as http:
        await http.get("/")
        await asyncio.sleep(5 - D / 2)
        with pytest.raises(httpx.RemoteProtocolError, match="Server disconnected without sending a response"):
            await http.get("/")


@virtual()
async def test_a_read_timeout_comes_at_its_moment(net: Net) -> None:
    """httpx's five seconds of silence end a quiet stream exactly then."""
    async with serve(make_app()), browser() as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.get("/events?n=1&every=100")
        assert now() == at(4 * D + 5)


@virtual()
async def test_a_def_endpoint_that_sleeps_delays_itself_and_an_async_one_everybody(net: Net) -> None:
    """A def endpoint costs no extra time and sleeps alone; time.sleep in an async one holds up the whole loop."""

    async def ask(path: str) -> float:
        async with browser() as http:
            start = now()
            assert (await http.get(path)).is_success
            return round(now() - start, 9)

    async with serve(make_app()):
        assert await ask("/def") == 4 * D
        assert await both_of(ask("/def?sleep=3"), ask("/")) == (3 + 4 * D, 4 * D)
        assert await both_of(ask("/blocking"), ask("/")) == (3 + 4 * D, 3 + 4 * D)


@virtual()
async def test_def_endpoints_run_forty_at_a_time(net: Net) -> None:
    """As with anyio's threads, the forty-first waits for one of the first, and an async endpoint for none."""
    app = make_app()

    @app.get("/slow")
    def slow() -> Response:  # what is no Response FastAPI would make one of in a thread, for which it would queue again
        time.sleep(1)
        return Response()

    async def ask(path: str) -> float:
        async with browser(timeout=None) as http:
            await http.get(path)
            return round(now() - 4 * D, 6)

    async with serve(app):
        *late, quick = await asyncio.gather(*(ask("/slow") for _ in range(100)), ask("/"))
    assert quick == 0
    assert Counter(late) == {1: 40, 2: 40, 3: 20}


@virtual()
async def test_a_thread_that_is_told_to_be_cancelled_works_to_its_end_all_the_same(net: Net) -> None:
    """anyio's threads cannot be stopped: the task that waits for one is cancelled when it is done, or leaves it."""

    async def work(*, abandon: bool) -> None:
        await anyio.to_thread.run_sync(time.sleep, 10, abandon_on_cancel=abandon)

    for abandon, seconds in ((False, 10), (True, 1)):
        start = now()
        with anyio.move_on_after(1):
            await work(abandon=abandon)
        assert now() == at(start + seconds)


@virtual()
async def test_server_sent_events_arrive_after_exactly_one_delay(net: Net) -> None:
    """sse-starlette to httpx-sse: every event takes d, to float rounding, and the heartbeat keeps its beat."""
    delays = []
    async with (
        serve(make_app()),
        browser(timeout=None) as http,
        aconnect_sse(http, "GET", "/events?n=100") as stream,
    ):
        async for event in stream.aiter_sse():
            delays.append(now() - float(event.data))
    assert delays == [at(D)] * 100
    assert net.transcript is not None
    pings = [row.sent for row in net.transcript if b": ping" in row.data]
    assert pings == [at(3 * D + 15 * i) for i in range(1, 7)]


@virtual()
async def test_websocket_messages_arrive_after_exactly_one_delay(net: Net) -> None:
    """FastAPI to the websockets client: every message takes d, to float rounding, and the close is clean."""
    async with serve(make_app()), websockets.connect(f"{WS}?n=100", proxy=None) as ws:
        delays = [now() - float(message) async for message in ws]
    assert delays == [at(D)] * 100
    assert ws.close_code == 1000


@pytest.mark.parametrize("dark", [("up",), ("down",), ()], ids=["up", "down", "both"])
@virtual()
async def test_a_websocket_client_finds_a_dead_link_by_its_ping(net: Net, dark: tuple[Way, ...]) -> None:
    """Pinging every 20 s, it finds a link dark since 30 by the ping of 40, unanswered for 20 s: at 60."""
    async with (
        serve(make_app(), ws_ping_interval=None),
        websockets.connect(f"{WS}?n=1&every=1000", proxy=None, close_timeout=0) as ws,
    ):
        opened = now()
        await ws.recv()
        asyncio.get_running_loop().call_at(opened + 30, net.link.blackhole, *dark)
        with pytest.raises(websockets.ConnectionClosedError, match="keepalive ping timeout"):
            await ws.recv()
        assert now() == at(opened + 60)


@virtual()
async def test_a_websocket_survives_a_short_black_hole(net: Net) -> None:
    """Dark from 30 to 45, healed before the ping of 40 is missed at 60: the connection lives on."""
    async with serve(make_app()), websockets.connect(f"{WS}?n=4&every=100", proxy=None) as ws:
        asyncio.get_running_loop().call_at(30, net.link.blackhole)
        asyncio.get_running_loop().call_at(45, net.link.heal)
        assert len([message async for message in ws]) == 4
        assert now() > 400


@virtual()
async def test_a_websocket_server_learns_of_a_cut_when_it_sends(net: Net) -> None:
    """The client sees the cut at once; the handler's next send raises WebSocketDisconnect."""
    async with serve(make_app()) as server:
        async with websockets.connect(f"{WS}?n=100", proxy=None) as ws:
            asyncio.get_running_loop().call_at(10.5, net.link.cut)
            with pytest.raises(websockets.ConnectionClosedError):
                [message async for message in ws]
            assert now() == 10.5
        await asyncio.sleep(1)
        assert server.app.state.left == [at(3 * D + 11)]


@virtual()
async def test_a_slow_reader_blocks_a_websocket_sender_at_window_and_buffer(net: Net) -> None:
    """A flooding handler stops when 64 KiB of window and 64 KiB of uvicorn's buffer are full."""
    app = FastAPI()
    sent = []

    @app.websocket("/ws")
    async def flood(ws: WebSocket) -> None:
        await ws.accept()
        for _ in range(1000):
            await ws.send_bytes(bytes(1000))
            sent.append(now())
        await ws.close()

    async with serve(app), websockets.connect(WS, proxy=None, max_queue=1) as ws:
        await asyncio.sleep(10)
        assert 131072 / 1004 <= len(sent) < 131072 / 1004 + 5  # and a few in the client's own queue
        assert len([message async for message in ws]) == 1000
    assert 10 < sent[-1] < 11


async def read_stream(net: Net) -> tuple[bytes, bool]:
    """The body of an event stream as far as it came, and whether it was cut."""
    body = b""
    async with browser() as http:
        try:
            async with http.stream("GET", "/events") as response:
                async for data in response.aiter_raw():
                    body += data
        except httpx.ReadError:
            return body, True
    return body, False


@virtual()
async def test_server_sent_events_are_cut_at_every_byte(net: Net) -> None:
    """cut_after(n) on an event stream gives httpx the bytes before the n-th, then a ReadError, for every n."""
    app = FastAPI()

    @app.get("/events")
    async def events() -> EventSourceResponse:
        async def stream() -> AsyncIterator[dict[str, str]]:
            yield {"id": "1", "data": "one"}
            yield {"id": "2", "data": "two"}

        return EventSourceResponse(stream())

    async with serve(app):
        whole, cut = await read_stream(net)
        assert (whole, cut) == (b"id: 1\r\ndata: one\r\n\r\nid: 2\r\ndata: two\r\n\r\n", False)
        assert net.transcript is not None
        head, *chunks = [row.data for row in net.transcript if row.way == "down" and row.kind == "DATA"]
        assert b"".join(chunk.partition(b"\r\n")[2][:-2] for chunk in chunks) == whole
        for n in range(len(head) + len(b"".join(chunks))):
            body, offset = b"", len(head)
            for chunk in chunks:  # its size, CRLF, data, CRLF; the data is handed over as it comes
                start = chunk.index(b"\r\n") + 2
                body += chunk[start:-2][: max(0, n - offset - start)]
                offset += len(chunk)
            net.link.cut_after(n)
            assert (n, *await read_stream(net)) == (n, body, True)
        assert await read_stream(net) == (whole, False)


@virtual()
async def test_a_websocket_stream_is_cut_at_every_byte(net: Net) -> None:
    """cut_after(n) gives the client exactly the messages that are whole within n bytes, for every n."""
    app = FastAPI()

    @app.websocket("/ws")
    async def three(ws: WebSocket) -> None:
        await ws.accept()
        for message in ("one", "two", "three"):
            await ws.send_text(message)
        await ws.close()

    async def read() -> tuple[list[str], bool]:
        got: list[str] = []
        try:
            async with websockets.connect(WS, proxy=None) as ws:
                async for message in ws:
                    got.append(str(message))
        except (websockets.InvalidHandshake, websockets.ConnectionClosedError):
            return got, True
        return got, False

    async with serve(app):
        assert await read() == (["one", "two", "three"], False)
        assert net.transcript is not None
        sizes = [len(row.data) for row in net.transcript if row.way == "down" and row.kind == "DATA"]
        assert sizes[1:] == [2 + 3, 2 + 3, 2 + 5, 2 + 2]  # frames: a two-byte head each; the last is the close
        ends = [sum(sizes[:i]) for i in (2, 3, 4)]
        for n in range(sum(sizes)):
            net.link.cut_after(n)
            messages, cut = await read()
            assert (n, messages, cut) == (n, ["one", "two", "three"][: sum(end <= n for end in ends)], True)


# Serving


@pytest.mark.parametrize("on_state", [True, False], ids=["app.state.closing", "app.closing"])
@virtual()
async def test_serve_ends_the_applications_own_streams_first(net: Net, on_state: bool) -> None:
    """The application's closing signal comes a tick before uvicorn stops: its streams end in their own way."""
    app = FastAPI()
    ended = asyncio.Event()

    class Closing:
        def close(self) -> None:
            ended.set()

    holder: Any = app.state if on_state else app
    holder.closing = Closing()

    @app.get("/events")
    async def events() -> EventSourceResponse:
        async def stream() -> AsyncIterator[dict[str, str]]:
            yield {"data": "hello"}
            await ended.wait()
            yield {"data": "bye"}

        return EventSourceResponse(stream())

    @app.websocket("/ws")
    async def messages(ws: WebSocket) -> None:
        await ws.accept()
        await ended.wait()
        for _ in range(10):  # a handler may take some rounds of the loop
            await asyncio.sleep(0)
        await ws.close(1001, "bye")

    async def listen() -> list[str]:
        async with browser(timeout=None) as http, aconnect_sse(http, "GET", "/events") as stream:
            return [event.data async for event in stream.aiter_sse()]

    async def chat() -> int | None:
        async with websockets.connect(WS, proxy=None) as ws:
            await ws.wait_closed()
            return ws.close_code

    async with serve(app):
        both = asyncio.create_task(both_of(listen(), chat()))
        await asyncio.sleep(10)
    assert await both == (["hello", "bye"], 1001)
    assert now() < 10.5


@virtual()
async def test_serve_ends_a_stream_that_does_not_end_by_itself(net: Net) -> None:
    """Without a closing signal, or in a black hole, the graceful limit of a second cuts what is left."""
    async with browser(timeout=None) as http:
        async with serve(make_app()):
            reading = asyncio.create_task(http.get("/events?n=1000000"))
            await asyncio.sleep(10)
        with pytest.raises(httpx.RemoteProtocolError):
            await reading
        assert now() < 12
        async with serve(make_app()):
            reading = asyncio.create_task(http.get("/events?n=1000000"))
            await asyncio.sleep(10)
            net.link.blackhole()
        assert now() < 24
        reading.cancel()


@virtual()
async def test_serve_runs_the_lifespan_and_reports_one_that_fails(net: Net) -> None:
    """Startup runs before the block and shutdown after it; a failing startup is a VirtualError."""
    log = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.append("up")
        yield
        log.append("down")

    @contextlib.asynccontextmanager
    async def fails(app: FastAPI) -> AsyncIterator[None]:
        raise KeyError("no database")
        yield

    async with serve(FastAPI(lifespan=lifespan)):
        log.append("block")
    assert log == ["up", "block", "down"]
    with pytest.raises(VirtualError, match=r"no server at server:80: .* the lifespan failed"):
        async with serve(FastAPI(lifespan=fails)):
            log.append("never")
    assert log == ["up", "block", "down"]


# Repeatability


async def everything(net: Net) -> list[Row]:
    """All models at once over a bad link: a cut, clients that are cancelled together, others met by the shutdown."""
    log: list[Any] = []

    async def poll() -> None:
        async with browser() as http:
            for _ in range(5):
                await asyncio.sleep(random.random())
                log.append((await http.get("/")).json())

    async def listen() -> None:
        async with browser(timeout=None) as http, aconnect_sse(http, "GET", "/events") as stream:
            async for event in stream.aiter_sse():
                log.append(event.data)

    async def chat() -> None:
        async with websockets.connect(f"{WS}?n=5", proxy=None, ping_interval=2, compression=None) as ws:
            async for message in ws:
                log.append(message)
                await ws.send(f"{uuid.uuid4()}")

    async def until_lost(model: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with contextlib.suppress(httpx.TransportError, websockets.WebSocketException, OSError):
            await model()

    async with asyncio.TaskGroup() as outlives_the_server, serve(make_app()):
        async with asyncio.TaskGroup() as group:
            for model in (poll, listen, chat) * 4:
                group.create_task(until_lost(model))
            await asyncio.sleep(2)
            net.link.cut_after(1000)
            await asyncio.sleep(1)
            clients = [group.create_task(until_lost(model)) for model in (poll, listen, chat) * 4]
            await asyncio.sleep(2)
            for task in set(clients):  # in the order of a set, as asyncio and anyio do
                task.cancel()
        for model in (listen, chat) * 4:
            outlives_the_server.create_task(until_lost(model))
        await asyncio.sleep(2)
    assert len(log) > 80
    assert net.transcript is not None
    return net.transcript


def run_everything(seed: int = 1) -> list[Row]:
    return run_virtual(everything, link=Link(jitter=0.02, loss=0.05), seed=seed)


def test_two_runs_with_one_seed_are_identical_and_another_seed_is_not() -> None:
    """The transcript, to the byte and the moment, is a function of the program and the seed."""
    first = run_everything()
    assert run_everything() == first
    assert run_everything(seed=2) != first


def test_runs_in_other_processes_with_other_hash_seeds_are_identical() -> None:
    """Neither hashes nor addresses reach the transcript, in the order of whatever set."""

    def digest(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        program = [sys.executable, __file__]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=100, check=True)
        return done.stdout

    digests = [digest(hash_seed) for hash_seed in ("0", "1", "4242")]
    assert len(digests[0]) == 65
    assert len(set(digests)) == 1


async def by_default(net: Net) -> list[Row]:
    """Held requests on the long-poll server as it comes, whose holds it draws without a seed."""

    async def follow() -> None:
        async with browser(timeout=None) as http:
            cursor = "0"
            while True:
                answer = await http.get("/updates", params={"after": cursor, "wait": 3})
                cursor = answer.json()["cursor"]

    feed = Feed()
    async with serve(long_polling.create_app(feed)):
        clients = [asyncio.create_task(follow()) for _ in range(2)]
        for number in range(3):
            await asyncio.sleep(7)
            feed.publish(f"{number}", "added", size=1, sha256="ab")
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
    assert net.transcript is not None
    assert len(net.transcript) > 30
    return net.transcript


def test_the_default_long_poll_server_repeats_itself() -> None:
    """Twenty runs of one seed are one run, to the byte, though the server itself was given no seed."""
    first = run_virtual(by_default)
    assert all(run_virtual(by_default) == first for _ in range(19))
    assert run_virtual(by_default, seed=2) != first


if __name__ == "__main__":
    print(hashlib.sha256(repr([run_everything(), run_virtual(by_default)]).encode()).hexdigest())
