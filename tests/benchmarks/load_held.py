"""What two workers behind the shipped nginx hold, with the log in Redis; three runs, each of which says what it found.

    python -m tests.benchmarks.load_held subscribers [--clients 10000] [--minutes 1]
    python -m tests.benchmarks.load_held soak        [--clients 1000]  [--minutes 15]
    python -m tests.benchmarks.load_held mirrors     [--clients 1000]  [--minutes 1]

`subscribers`: an update a second; none may be lost, come twice, or out of order. `soak`: clients come and go, some
never read; memory and descriptors of the workers stay flat. `mirrors`: each keeps path -> SHA-256 of a real directory,
by listing, following and resuming, while workers are killed, Redis restarts and nginx reloads; all end complete.
The exit status is 1 when anything was not as it should be.
"""

import argparse
import asyncio
import contextlib
import functools
import hashlib
import json
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from lab.proxies import RedisServer
from lab.proxies.nginx import installed
from tests.benchmarks.fan_out import free_port

SHIPPED = Path(__file__).parents[2] / "servers" / "nginx.conf"
SETTLE = 90.0  # seconds in which all mirrors must have come to the end
EACH = 50  # connections opened at a time


class Setting:
    """Redis, the workers, nginx; `port` is nginx's."""

    def __init__(self, redis: RedisServer, servers: psutil.Process, nginx: subprocess.Popen[bytes], port: int) -> None:
        self.redis, self.servers, self.nginx, self.port = redis, servers, nginx, port

    @property
    def workers(self) -> list[psutil.Process]:
        """The workers that are there now."""
        return self.servers.children()


@contextlib.contextmanager
def setting(*options: object, model: str = "file-updates") -> Iterator[Setting]:
    """All of it, started and ended."""
    program = installed()
    if program is None:
        raise SystemExit("nginx is not installed")
    port, behind = free_port(), free_port()
    text = SHIPPED.read_text().replace("8080 backlog", f"127.0.0.1:{port} backlog").replace("8005", str(behind))
    with RedisServer() as redis, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # nginx's workers are somebody else
        Path(folder, "nginx.conf").write_text(text.replace("worker_shutdown_timeout 30s", "worker_shutdown_timeout 5s"))
        words = (model, "--port", behind, "--feed", redis.url, "--workers", 2, *options)
        servers = subprocess.Popen(
            [sys.executable, "-m", "servers", *map(str, words)], stdout=subprocess.PIPE, text=True
        )
        assert servers.stdout is not None
        try:
            if " at http://" not in (said := servers.stdout.readline()):
                raise SystemExit(f"no servers: {said}")
            here = ("-p", f"{folder}/", "-c", "nginx.conf", "-e", "error.log")
            nginx = subprocess.Popen([program, *here, "-g", "daemon off; pid nginx.pid; error_log error.log;"])
            try:
                accepting(port)
                yield Setting(redis, psutil.Process(servers.pid), nginx, port)
            finally:
                nginx.terminate()
                nginx.wait()
        finally:
            servers.terminate()
            servers.wait()
            servers.stdout.close()


def accepting(port: int) -> None:
    """Return once somebody listens there."""
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


class Stream(asyncio.Protocol):
    """One open event stream, by HTTP/1.0, so that it comes without chunks; `gone` is set at its end."""

    def __init__(self, owner: "Subscriber", after: str) -> None:
        self.owner, self.after = owner, after
        self.data, self.in_body = b"", False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(f"GET /events?after={self.after} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.in_body:
            head, found, rest = self.data.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 200 " not in head.partition(b"\r\n")[0]:
                self.transport.close()
                return
            self.data, self.in_body = rest, True
        *blocks, self.data = self.data.split(b"\n\n")
        for block in blocks:
            self.owner.take(block)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


class Subscriber:
    """Follows from a cursor on, and comes back from where it was."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self.port, self.rng = port, rng
        self.cursor, self.begun = "", False
        self.updates = self.lost = self.repeated = self.resets = self.connects = 0
        self.stream: Stream | None = None

    async def run(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(OSError):
                after = await self.start()
                _, self.stream = await loop.create_connection(
                    functools.partial(Stream, self, after), "127.0.0.1", self.port
                )
                self.connects += 1
                try:
                    await self.stream.gone
                finally:
                    self.stream.transport.abort()
            await asyncio.sleep(self.rng.uniform(0.1, 1.0))

    async def start(self) -> str:
        """Where the stream is to begin; "" is the oldest that is kept."""
        return self.cursor or "0"

    def take(self, block: bytes) -> None:
        """One block of the stream."""
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line and line[0] != 58)
        if b"id" not in fields:
            return
        cursor = fields[b"id"].decode()
        if fields.get(b"event") == b"reset":
            self.resets += 1
            self.reset()
        elif fields.get(b"event") == b"update":
            self.updates += 1
            before, now = number(self.cursor), number(cursor)
            self.repeated += self.begun and now <= before
            self.lost += max(0, now - before - 1) if self.begun else 0
            self.update(fields[b"data"])
        self.cursor, self.begun = cursor, True

    def update(self, data: bytes) -> None:
        """One update."""

    def reset(self) -> None:
        """Some are gone."""


class MiniMirror(Subscriber):
    """Keeps what stands there: path -> SHA-256."""

    def __init__(self, port: int, rng: random.Random) -> None:
        super().__init__(port, rng)
        self.files: dict[str, str] | None = None
        self.listings = 0

    async def start(self) -> str:
        if self.files is None:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(b"GET /files HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
                    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
                finally:
                    writer.close()
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise OSError("no listing at the moment")
            told = json.loads(body)
            self.cursor, self.begun = told["cursor"], True
            self.files = {each["path"]: each["sha256"] for each in told["files"]}
            self.listings += 1
        return self.cursor

    def update(self, data: bytes) -> None:
        told = json.loads(data)
        assert self.files is not None
        if told["change"] == "deleted":
            self.files.pop(told["path"], None)
        else:
            self.files[told["path"]] = told["sha256"]

    def reset(self) -> None:
        self.files = None
        if self.stream:
            self.stream.transport.abort()  # list again, then follow


def number(cursor: str) -> int:
    """Where a cursor stands in its log."""
    found = re.search(r"[0-9]+$", cursor)
    return int(found[0]) if found else 0


async def crowd(port: int, kind: type[Subscriber], count: int, tasks: set[asyncio.Task[None]]) -> list[Any]:
    """So many of them, connected a few at a time."""
    rng = random.Random(1)
    members = [kind(port, rng) for _ in range(count)]
    for first in range(0, count, EACH):
        tasks.update(asyncio.create_task(each.run()) for each in members[first : first + EACH])
        async with asyncio.timeout(60):
            while not all(each.begun for each in members[first : first + EACH]):  # noqa: ASYNC110  # raw protocols
                await asyncio.sleep(0.005)
    return members


async def leave(tasks: set[asyncio.Task[None]]) -> None:
    """End them."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    tasks.clear()


async def subscribers(clients: int, minutes: float) -> bool:
    """Everybody gets every update once, in order; of files' states the service would leave out what is superseded."""
    with setting("--rate", 1, "--regular", "--fast", model="sse") as its:
        tasks = set[asyncio.Task[None]]()
        members = await crowd(its.port, Subscriber, clients, tasks)
        before = [each.updates for each in members]
        await asyncio.sleep(60 * minutes)
        heads = {each.cursor for each in members}
        await asyncio.sleep(0.5)
        got = [each.updates - began for each, began in zip(members, before, strict=True)]
        shares = [
            len([c for c in worker.net_connections("tcp") if c.status == "ESTABLISHED"]) for worker in its.workers
        ]
        sums = {name: sum(getattr(each, name) for each in members) for name in ("lost", "repeated", "resets")}
        again = sum(each.connects - 1 for each in members)
        print(
            f"{clients} subscribers, {minutes:g} min: {min(got)} to {max(got)} updates each, {sum(got)} in all; {sums}"
        )
        print(f"connections of the workers {shares}, connected again {again}, cursors at one moment {len(heads)}")
        await leave(tasks)
        return not any(sums.values()) and min(got) >= 60 * minutes - 3


async def soak(clients: int, minutes: float) -> bool:
    """Memory and descriptors of the workers do not grow while clients come and go."""
    with setting("--rate", 5, "--payload", 2000) as its:
        rng, tasks = random.Random(2), set[asyncio.Task[None]]()
        idle = descriptors(its)
        members = await crowd(its.port, Subscriber, clients, tasks)
        deaf = rng.sample(members, clients // 20)
        samples = list[tuple[float, int]]()
        began, tell = time.monotonic(), 0.0
        while (at := time.monotonic() - began) < 60 * minutes:
            for each in rng.sample(members, max(1, clients // 100)):
                if each.stream:
                    each.stream.transport.abort()  # it comes back, by its cursor
            for each in deaf:
                if each.stream and not each.stream.transport.is_closing():
                    each.stream.transport.pause_reading()
            if at >= tell:
                memory = sum(worker.memory_info().rss for worker in its.workers) / 2**20
                samples.append((memory, descriptors(its)))
                print(f"{at:6.0f} s  {memory:7.1f} MiB  {samples[-1][1]} descriptors", flush=True)
                tell += max(5.0, 60 * minutes / 30)
            await asyncio.sleep(0.5)
        hearing = [each for each in members if each not in deaf]
        joined, repeated = sum(each.lost for each in hearing), sum(each.repeated for each in hearing)
        resets = sum(each.resets for each in hearing)
        await leave(tasks)
        await asyncio.sleep(3)
        after = descriptors(its)
        half = samples[len(samples) // 2 :]
        growth = half[-1][0] / half[0][0] - 1
        print(f"memory in the second half {100 * growth:+.1f} %; joined {joined}, repeated {repeated}, resets {resets}")
        print(f"descriptors: {idle} idle, {half[0][1]} to {half[-1][1]} held, {after} when all have left")
        return growth < 0.05 and after <= idle + 70 and repeated == resets == 0  # nginx keeps 64 idle ones


def descriptors(its: Setting) -> int:
    """Open files and sockets of the workers."""
    return sum(worker.num_fds() for worker in its.workers)


async def mirrors(clients: int, minutes: float) -> bool:
    """Each ends with what stands in the directory, whatever broke meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        directory, rng = Path(folder), random.Random(3)
        for n in range(50):
            (directory / f"file-{n:03}").write_bytes(rng.randbytes(200))
        with setting("--watch", folder, "--heartbeat", 5) as its:
            tasks = set[asyncio.Task[None]]()
            members = await crowd(its.port, MiniMirror, clients, tasks)
            faults = ["kill", "redis", "reload", "kill", "redis"]
            began, seconds = time.monotonic(), 60 * minutes
            while (at := time.monotonic() - began) < seconds:
                file = directory / f"file-{rng.randrange(80):03}"
                if file.exists() and rng.random() < 0.2:
                    file.unlink()
                else:
                    file.write_bytes(rng.randbytes(200))
                if faults and at > seconds * (6 - len(faults)) / 7:
                    await asyncio.to_thread(fail, its, faults.pop(0), at)
                await asyncio.sleep(0.2)
            truth = standing(directory)
            ended = time.monotonic()
            while (left := sum(each.files != truth for each in members)) and time.monotonic() < ended + SETTLE:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            took = time.monotonic() - ended
            names = ("updates", "repeated", "resets", "connects", "listings")
            sums = {name: sum(getattr(each, name) for each in members) for name in names}
            print(
                f"{clients} mirrors of {len(truth)} files: {clients - left} complete, {took:.1f} s after the last edit"
            )
            print(sums)
            await leave(tasks)
            return not left and not any(each.repeated for each in members)


def standing(directory: Path) -> dict[str, str]:
    """What stands there."""
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in directory.iterdir()}


def fail(its: Setting, fault: str, at: float) -> None:
    """Have something break."""
    print(f"{at:6.1f} s  {fault}", flush=True)
    if fault == "kill":
        its.workers[0].kill()
    elif fault == "redis":
        its.redis.kill()
        its.redis.start()
    else:
        its.nginx.send_signal(signal.SIGHUP)


RUNS = {"subscribers": (subscribers, 10_000, 1.0), "soak": (soak, 1000, 15.0), "mirrors": (mirrors, 1000, 1.0)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args()
    run, clients, minutes = RUNS[options.run]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 0 if asyncio.run(run(options.clients or clients, options.minutes or minutes)) else 1


if __name__ == "__main__":
    sys.exit(main())
