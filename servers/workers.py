"""One server in several processes, behind one address: who starts them, keeps them, and ends them.

    parent: sockets, one a worker, all on one port ─▶ worker 1, worker 2, ...   each is `python -m servers` again
            a pipe that it holds open                 └─ at its end they end: the parent is gone
            cells for numbers                         └─ each counts in its own, any tells the sums

On Linux the port is shared by SO_REUSEPORT: the kernel spreads connections evenly, by their addresses. Workers that
accept from one socket get them unevenly: whoever wakes first takes all there are. The parent holds every socket, so
that connections to a worker that has died wait for the next one, and none is refused. Elsewhere it is one socket.
"""

import contextlib
import errno
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from servers.background import STOP_LIMIT, ServerError, heed_signals
from servers.lease import TICK
from servers.service import CELLS, Service

VARIABLE = "PUSH_VS_PULL_WORKER"  # tells a process that it is a worker, and which
BACKLOG = 2048  # connections that wait to be accepted
START_LIMIT = 60.0  # seconds until a worker that accepts no connections is given up
LEAVE_LIMIT = 1.7  # seconds until workers that were told to end are killed
LATE = 10.0  # seconds that a drain may take longer than it should: each worker ends it by its own clock
PACE = 0.5, 10.0  # seconds from the end of a worker to the next one: at first, and when each dies at once

log = logging.getLogger("servers")


class Post(NamedTuple):
    """What a worker is given: its number from 0 on, its socket, the parent's pipe, and everybody's cells."""

    number: int
    again: bool  # whether another one has served in its place
    listener: socket.socket
    lifeline: int
    everybody: Sequence["memoryview[int]"]

    def share(self, most: int | None) -> int | None:
        """How many of so many connections are this one's."""
        count = len(self.everybody)
        return most and most // count + (self.number < most % count)

    def serve_until_orphaned(self, app: Service) -> threading.Event:
        """Count where the others see it; the event comes when the parent is gone."""
        app.traffic.join(self.everybody, self.number)
        orphaned = threading.Event()

        def listen() -> None:
            os.read(self.lifeline, 1)  # returns at the end of the pipe only
            while True:  # as often as it takes: no drain, which the first one begins, outlives the parent
                orphaned.set()
                time.sleep(TICK)

        threading.Thread(target=listen, name="lifeline", daemon=True).start()
        return orphaned


def post() -> Post | None:
    """What this process was given, if it is a worker."""
    said = os.environ.pop(VARIABLE, None)
    if said is None:
        return None
    number, again, listener, lifeline, counts = map(int, said.split())
    shared = memoryview(mmap.mmap(counts, 0)).cast("q")
    cells = [shared[at : at + CELLS] for at in range(0, len(shared), CELLS)]
    return Post(number, bool(again), socket.socket(fileno=listener), lifeline, cells)


def listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets that listen at one address, one for each worker. Raises ServerError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)  # fails where somebody else listens, who may share the port as well
            address = alone.getsockname()
        found = list[socket.socket]()
        for _ in range(count if sys.platform == "linux" else 1):
            # with the protocol named, or asyncio does not set TCP_NODELAY on what it accepts
            listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            found.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform == "linux":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
        for listener in found:
            listener.listen(BACKLOG)
    except OSError as error:
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else f"cannot listen: {error.strerror}"
        raise ServerError(f"no server at {host}:{port}: {reason}") from error
    return (found * count)[:count]


class Workers:
    """So many processes that run `python -m servers` with these arguments, started anew when one dies."""

    def __init__(self, arguments: Sequence[str], count: int, host: str, port: int) -> None:
        self.arguments, self.count = arguments, count
        self.sockets = listeners(host, port, count)
        port = self.sockets[0].getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.processes: list[subprocess.Popen[str] | None] = [None] * count
        self.ready = [threading.Event() for _ in range(count)]
        self.stopping = threading.Event()
        self.status = 0
        self.lock = threading.Lock()
        self.pipe = os.pipe()
        self.counts = tempfile.TemporaryFile()  # noqa: SIM115  # until the workers end
        self.counts.truncate(count * CELLS * 8)
        self.threads = [threading.Thread(target=self.tend, args=(number,), daemon=True) for number in range(count)]

    def start(self) -> bool:
        """Start them, the first one first: what is wrong, one says. False if they do not all accept connections."""
        for threads in (self.threads[:1], self.threads[1:]):
            for thread in threads:
                thread.start()
            until = time.monotonic() + START_LIMIT
            for ready in self.ready[: 1 if threads == self.threads[:1] else self.count]:
                if not ready.wait(max(0.0, until - time.monotonic())) or self.stopping.is_set():
                    return False
        return True

    def drain(self, seconds: float, enough: threading.Event) -> None:
        """Have each end its streams over so many seconds, and itself; return when all have, or `enough` is set."""
        until = time.monotonic() + seconds + LATE
        for process in self.tell():
            while process.poll() is None and time.monotonic() < until:
                if enough.wait(TICK):
                    return

    def tell(self) -> list[subprocess.Popen[str]]:
        """Tell those that run to end, and have none come after them."""
        with self.lock:
            self.stopping.set()
            running = [process for process in self.processes if process]
        for listener in self.sockets:
            listener.close()
        for process in running:
            process.terminate()
        return running

    def stop(self) -> None:
        """End all of them, within LEAVE_LIMIT seconds or by force."""
        running = self.tell()
        until = time.monotonic() + LEAVE_LIMIT
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for thread in self.threads:
            if thread.ident:
                thread.join(STOP_LIMIT)
        for end in self.pipe:
            os.close(end)
        self.counts.close()

    def tend(self, number: int) -> None:
        """Run one worker after the other."""
        pause, most = PACE
        while True:
            began = time.monotonic()
            try:
                with self.lock:
                    if self.stopping.is_set():
                        break
                    process = self.processes[number] = self.worker(number)
            except OSError as error:  # no memory, no descriptors: a thread that has died would bring no worker ever
                log.error("worker %d cannot be started: %s", number + 1, error.strerror)
                if not self.ready[number].is_set():
                    self.status = 1
                    self.stopping.set()
                    break
                pause = min(2 * pause, most)
                self.stopping.wait(pause)
                continue
            assert process.stdout is not None
            with process.stdout as said:
                if " at http://" in said.readline():
                    self.ready[number].set()
                for _ in said:
                    pass
            status = process.wait()
            if self.stopping.is_set():
                break
            why = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            if not self.ready[number].is_set():
                if status < 0:  # else it has said why
                    log.error("worker %d has ended with %s before it was ready", number + 1, why)
                self.status = status if status > 0 else 1
                self.stopping.set()
                break
            log.warning("worker %d has ended with %s: another one takes its place", number + 1, why)
            pause = min(2 * pause, most) if time.monotonic() - began < most else PACE[0]
            self.stopping.wait(pause)
        for ready in self.ready:
            ready.set()  # nobody need wait any more

    def worker(self, number: int) -> subprocess.Popen[str]:
        """Start a worker. In a session of its own: Ctrl-C in a terminal is the parent's to hear."""
        again = int(self.ready[number].is_set())
        given = (self.sockets[number].fileno(), self.pipe[0], self.counts.fileno())
        return subprocess.Popen(
            [sys.executable, "-m", "servers", *self.arguments],
            env=os.environ | {VARIABLE: " ".join(map(str, (number, again, *given)))},
            pass_fds=given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def supervise(arguments: Sequence[str], name: str, *, count: int, host: str, port: int, drain: float = 0.0) -> int:
    """Keep so many workers until Ctrl-C or SIGTERM; return the exit status. Raises ServerError.

    Then they drain over so many seconds, unless a second signal comes meanwhile.
    """
    enough = threading.Event()
    heed_signals(enough)
    workers = Workers(arguments, count, host, port)

    def start() -> None:
        if not workers.start():
            enough.set()

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    while starting.is_alive() and not enough.is_set():
        starting.join(0.05)
    if not enough.is_set():
        print(f"{name} at {workers.url} ({count} workers; Ctrl-C stops them)", flush=True)
        enough.wait()
        if drain:
            enough.clear()
            workers.drain(drain, enough)
    workers.stop()
    with contextlib.suppress(ValueError):
        sys.stdout.flush()
    return workers.status
