"""Servers in processes of their own, measured: what a request, a delivery, a quiet second and a connection cost there.

    python -m servers MODEL ◀─ raw clients (load.py), 0, 30, 60, 100 of them ─▶ Window, Window, ... ─▶ Line ─▶ Units
       └─ its CPU seconds and its memory, read from outside (psutil)              least squares: the slope is the cost

A server in the notebook's own process cannot be told apart from its clients. Here the operating system keeps the
account. A cost is the *slope* over several counts, so that what the server needs without any client is left out.
"""

import asyncio
import math
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import psutil

from lab.bench.metronome import metronome
from lab.bench.result import BUSY, FULL
from lab.cost.load import Load
from lab.theory import Resources, Units
from servers.feed import HEARTBEAT
from servers.limits import check_positive
from servers.models import model as find

START_LIMIT = 20.0  # seconds until a server that says nothing is given up
SAID = 20  # of the last lines that a server printed: what an error can tell
SETTLE = 0.2  # seconds from the last handshake to a window
COUNTS = (0, 30, 60, 100)  # connections
QUIET = 1e-5  # updates per second: none, while we look
FAST = 0.1  # seconds between heartbeats where heartbeats are measured


class ServerProcess:
    """`python -m servers MODEL` with these options, from the block's beginning to its end; `url` says where."""

    def __init__(self, model: str, *, module: str = "servers", **options: float | str) -> None:
        """Options are those of the command line: rate=5, heartbeat=1, and True for a flag, False for none."""
        given = {name.replace("_", "-"): value for name, value in options.items() if value is not False}
        words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
        self.model = model
        self.command = [sys.executable, "-m", module, model, "--port", "0", *words]
        self.said: deque[str] = deque(maxlen=SAID)

    def __enter__(self) -> Self:
        """Return once it accepts connections; RuntimeError with what it said when it does not."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        with_a_limit = threading.Timer(START_LIMIT, self.process.kill)  # a dead process ends the line below
        with_a_limit.start()
        line = self.process.stdout.readline()
        with_a_limit.cancel()
        self.said.append(line)
        self.listener = threading.Thread(target=self.said.extend, args=(self.process.stdout,), daemon=True)
        self.listener.start()  # a pipe that nobody reads blocks its writer after 64 KiB
        _, found, rest = line.partition(" at http://")
        if not found:
            self.__exit__(None, None, None)
            raise RuntimeError(f"no server for {self.model}: {''.join(self.said).strip() or 'it said nothing'}")
        self.url = f"http://{rest.split()[0]}"
        self.account = psutil.Process(self.process.pid)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.listener.join(5)  # it ends with the pipe, unless a grandchild holds that open
        if not self.listener.is_alive():
            self.process.stdout.close()

    @property
    def cpu(self) -> float:
        """CPU seconds used so far, the kernel's work for it included."""
        return cpu_seconds(self.account)

    @property
    def memory(self) -> int:
        """Bytes in main memory: the resident set. The kernel's socket buffers are not in it."""
        return int(self.account.memory_info().rss)


@dataclass(frozen=True)
class Window:
    """What one server process did in `seconds`, with so many `connections` open.

    `cpu` in seconds, `memory` in bytes at the end, `up` and `down` in bytes of TCP payload; the rest are counts.
    `floor` (s) is how late a metronome on the measuring loop was, in the worst of twenty ticks, and `waited` the share
    of the time in which somebody on this machine waited for a CPU.
    """

    connections: int
    seconds: float
    cpu: float
    memory: int
    requests: int
    deliveries: int
    beats: int
    messages: int
    up: int
    down: int
    floor: float
    waited: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether the machine had so much else to do that the window is not to be believed."""
        return self.floor > BUSY or self.waited > FULL


async def windows(
    model: str,
    counts: Sequence[int] = COUNTS,
    *,
    seconds: float = 1.0,
    rate: float = QUIET,
    heartbeat: float = HEARTBEAT,
    interval: float = 0.1,
    talk: float = 0.0,
) -> list[Window]:
    """One server process, more and more connections, a window at each of the ascending `counts`.

    `interval` and `talk` are what the clients keep to (see `lab.cost.load.Load`), all in seconds. Raises RuntimeError
    when a connection is lost.
    """
    with ServerProcess(model, rate=rate, heartbeat=heartbeat) as server:
        clients = Load(model, server.url, interval=interval, talk=talk)
        try:
            return [await observe(server, clients, count, seconds) for count in counts]
        finally:
            clients.close()


COUNTED = ("requests", "deliveries", "beats", "messages", "up", "down")


async def observe(server: ServerProcess, clients: Load, count: int, seconds: float) -> Window:
    """The window of so many seconds after so many connections are open. Raises RuntimeError when one is lost."""
    check_positive(seconds=seconds)
    await clients.connect(count)
    await asyncio.sleep(SETTLE)
    async with metronome() as ticks:
        begin, cpu = time.perf_counter(), server.cpu
        before = [getattr(clients, name) for name in COUNTED]
        await asyncio.sleep(seconds)
        used, took = server.cpu - cpu, time.perf_counter() - begin
        counted = {name: getattr(clients, name) - n for name, n in zip(COUNTED, before, strict=True)}
    if clients.open != count:
        raise RuntimeError(f"{server.model}: {clients.open} of {count} connections are left")
    return Window(count, took, used, server.memory, floor=ticks.floor, waited=ticks.waited, **counted)


class Line(NamedTuple):
    """y = intercept + slope x by least squares, and the standard error of the slope."""

    slope: float
    intercept: float
    error: float

    @classmethod
    def through(cls, x: Sequence[float], y: Sequence[float], resolution: float = 0.0) -> "Line":
        """Through three points or more; `resolution` of y keeps the error from being smaller than the instrument's."""
        xs, ys = np.asarray(x, float), np.asarray(y, float)
        slope, intercept = np.polyfit(xs, ys, 1)
        scatter = ys - intercept - slope * xs
        spread = float(((xs - xs.mean()) ** 2).sum())
        error = math.sqrt(float((scatter**2).sum()) / max(len(xs) - 2, 1) / spread)
        return cls(float(slope), float(intercept), max(error, resolution / float(np.ptp(xs))))


def cpu_seconds(account: psutil.Process) -> float:
    """CPU seconds that a process has used, its threads' and the kernel's work for it included."""
    if sys.platform == "linux":  # psutil reads /proc/PID/stat there, which counts in hundredths of a second
        return time.clock_gettime((~account.pid << 3) | 2)  # what clock_getcpuclockid(3) makes of a process id
    return float(sum(account.cpu_times()[:2]))


def cpu_resolution() -> float:
    """The smallest step (s) in which this system accounts for CPU time: what no reading is better than."""
    account, steps = psutil.Process(), set[float]()
    until, last = time.perf_counter() + 0.1, cpu_seconds(account)
    while time.perf_counter() < until:
        if (now := cpu_seconds(account)) > last:
            steps.add(now - last)
            last = now
    return min(steps, default=0.01)


@dataclass(frozen=True)
class Measured:
    """One model's costs, and the windows that they come from: `ramp` over several counts, `extra` for the rest."""

    model: str
    per: str
    ramp: list[Window]
    extra: list[Window]
    cpu: Line  # CPU seconds per second, over what is counted in `per` per second
    memory: Line  # bytes, over connections
    units: Units

    @property
    def busy(self) -> bool:
        """Whether any window is not to be believed."""
        return any(window.busy for window in self.ramp + self.extra)


async def measure(model: str, *, seconds: float = 1.0, counts: Sequence[int] = COUNTS) -> Measured:
    """What each unit of work costs one of the four servers, on this machine, in about a dozen seconds.

    Each is loaded by what it is about: polls that find nothing; held requests that are answered by one update each;
    deliveries. A second server process of the model shows the rest: deliveries beside polls, heartbeats, messages.
    Raises UnknownModel for what is none, ValueError for one that no load is written for.
    """
    measured = find(model)
    name = measured.slug
    resolution = 2 * cpu_resolution() / seconds  # of CPU seconds per second: a reading at either end
    twice = (counts[0], counts[-1])
    match name:
        case "short-polling":
            per = "requests"
            ramp = await windows(name, counts, seconds=seconds)
            extra = await windows(name, twice, rate=100, seconds=seconds)
        case "long-polling":
            per = "requests"
            ramp = await windows(name, counts, rate=15, seconds=seconds)
            extra = []
        case "websocket":
            per = "deliveries"
            ramp = await windows(name, counts, rate=50, seconds=seconds)
            extra = await windows(name, twice, heartbeat=FAST, seconds=seconds)
            extra += await windows(name, twice, talk=0.05, seconds=seconds)
        case "sse":
            per = "deliveries"
            ramp = await windows(name, counts, rate=50, seconds=seconds)
            extra = await windows(name, twice, heartbeat=FAST, seconds=seconds)
        case _:
            raise ValueError(f"there is no load to measure {measured.name} with")
    work = [getattr(window, per) / window.seconds for window in ramp]
    cpu = Line.through(work, [window.cpu / window.seconds for window in ramp], resolution)
    used = [window for window in ramp if window.connections]  # the first connection loads code: it is in the intercept
    memory = Line.through([window.connections for window in used], [window.memory for window in used])
    return Measured(measured.name, per, ramp, extra, cpu, memory, _units(measured.name, ramp, extra, cpu, memory))


def _units(model: str, ramp: list[Window], extra: list[Window], cpu: Line, memory: Line) -> Units:
    """Unit costs from windows. Whatever comes out below nothing is noise, and counts as nothing."""
    full, held = ramp[-1], Resources(memory=max(0.0, memory.slope))
    slope = max(0.0, cpu.slope)
    if model == "short polling":
        request = Resources(slope, full.up / full.requests, full.down / full.requests)
        empty, loaded = extra
        rest = loaded.cpu - empty.cpu * loaded.seconds / empty.seconds - slope * loaded.requests
        down = (loaded.down - request.down * loaded.requests) / loaded.deliveries
        delivery = Resources(max(0.0, rest / loaded.deliveries), 0.0, down)
        return Units(request, delivery, held, request)
    if model == "long polling":
        request = Resources(slope, full.up / full.requests, full.down / full.requests)
        return Units(request, Resources(), held, request)  # one update in each answer: see `shared`
    delivery = Resources(slope, 0.0, full.down / full.deliveries)
    empty, beating = extra[:2]
    if not beating.beats:
        raise RuntimeError(f"{model}: no heartbeat came while its cost was measured: the machine is too busy")
    beat = beating.cpu - empty.cpu * beating.seconds / empty.seconds
    quiet = Resources(max(0.0, beat), beating.up, beating.down) * (1 / beating.beats / HEARTBEAT)
    message = Resources()
    if len(extra) > 2:
        empty, talking = extra[2:]
        said = talking.cpu - empty.cpu * talking.seconds / empty.seconds
        message = Resources(max(0.0, said), talking.up, talking.down) * (1 / talking.messages)
    return Units(Resources(), delivery, held + quiet, message)


def shared(measured: Sequence[Measured]) -> dict[str, Units]:
    """The four models' units, where one model borrows from another what its own load does not show.

    A delivery inside an answer costs a long poll what it costs a poll, so a long poll's request is its slope without
    it. Where nothing flows up, a client that has something to say makes a plain request, as a poll does.
    """
    units = {each.model: each.units for each in measured}
    poll, held = units["short polling"], units["long polling"]
    alone = Resources(
        max(0.0, held.request.cpu - poll.delivery.cpu), held.request.up, held.request.down - poll.delivery.down
    )
    units["long polling"] = replace(held, request=alone, delivery=poll.delivery, message=poll.request)
    units["SSE"] = replace(units["SSE"], message=poll.request)
    return units
