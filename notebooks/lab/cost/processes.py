"""Servers in processes of their own, watched: what each did and used in a window of time.

    python -m servers MODEL ◀─ raw clients (load.py), so many of them ─▶ observe ─▶ Window
       └─ its CPU seconds and its memory, read from outside (psutil)

A server in the notebook's own process cannot be told apart from its clients. Here the operating system keeps the
account. What follows from several windows is measuring.py's.

A processor that has slept takes its time to wake, and the server pays for it: a delivery took 35 µs on an idle machine
and 18 on one at work. So servers are measured while `kept_awake` holds the load of the machine: no processor sleeps.
"""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

from lab.bench.metronome import metronome
from lab.bench.result import BUSY, FULL
from lab.cost.load import ANSWER_LIMIT, Load
from servers.limits import check_positive

START_LIMIT = 120.0  # seconds until a server that says nothing is given up
SAID = 20  # of the last lines that a server printed: what an error can tell
SETTLE = 0.1  # seconds from the last answer to a window
CPUS = psutil.cpu_count() or 1
AWAKE = 8  # processors kept awake, at most: more than a server and its load can use
IDLING = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


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
            self.process.wait(20)  # it may have a profile to write
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
    `floor` (s) is how late a metronome on the measuring loop was, in the worst of twenty ticks, and `others` the share
    of the machine that was neither the server's nor its load's, nor of those who give way to everybody; the machine's
    account has steps of 10 ms, so that in a short window it may be a few per cent more or less, and below 0.
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
    others: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether the machine had so much else to do that the window is not to be believed."""
        return self.floor > BUSY or self.others > FULL


COUNTED = ("requests", "deliveries", "beats", "messages", "up", "down")


async def observe(
    server: ServerProcess, clients: Load, count: int, seconds: float, *, due: Sequence[str] = ()
) -> Window:
    """The window after so many connections are open: so many seconds, and on until each count that is `due` has begun.

    Raises RuntimeError when a connection is lost, and when what is due does not come.
    """

    def missing() -> list[str]:
        return [name for name in due if count and getattr(clients, name) == before[name]]

    check_positive(seconds=seconds)
    await clients.connect(count)
    await asyncio.sleep(SETTLE)
    async with metronome() as ticks:
        begin, cpu, own, machine = time.perf_counter(), server.cpu, time.process_time(), at_work()
        before = {name: getattr(clients, name) for name in COUNTED}
        await asyncio.sleep(seconds)
        until = time.perf_counter() + ANSWER_LIMIT  # on a machine that stood still nothing may have come yet
        while missing() and clients.open == count and time.perf_counter() < until:  # noqa: ASYNC110  # protocols count
            await asyncio.sleep(0.01)
        used, took = server.cpu - cpu, time.perf_counter() - begin
        counted = {name: getattr(clients, name) - n for name, n in before.items()}
        others = at_work() - machine - used - (time.process_time() - own)
    if clients.open != count:
        raise RuntimeError(f"{server.model}: {clients.open} of {count} connections are left")
    if late := missing():
        raise RuntimeError(f"{server.model}: no {' and no '.join(late)} in {took:.0f} s")
    return Window(count, took, used, server.memory, floor=ticks.floor, others=others / took / CPUS, **counted)


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """While the block runs no processor of this machine sleeps: loops keep them at work that give way to everybody."""
    with contextlib.ExitStack() as ends:
        for _ in range(min(CPUS, AWAKE)):
            loop = subprocess.Popen([sys.executable, "-c", IDLING])
            ends.callback(loop.wait)
            ends.callback(loop.kill)
            psutil.Process(loop.pid).nice(getattr(psutil, "IDLE_PRIORITY_CLASS", 19))  # that is Windows' word for it
        yield


def at_work() -> float:
    """CPU seconds that this machine has spent so far, but for those of processes that give way (niced ones)."""
    spent = psutil.cpu_times()._asdict()
    return float(sum(spent.get(name, 0.0) for name in ("user", "system", "irq", "softirq", "steal")))


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
