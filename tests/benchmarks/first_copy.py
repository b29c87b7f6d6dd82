"""The first copy of a directory of small files: the capstone's bundles, and rsync's daemon over TCP, in turns.

    python tests/benchmarks/first_copy.py [--files 24000] [--rounds 3] [--at-once 2]

The server runs in a process of its own and watches the directory. Here is a raw asyncio client: it lists, asks for all
files in bundles, checks each against its hash, and writes it as rsync does, under another name first. Times are wall
clock and CPU of both ends; on a busy machine only the latter means much. Copies are compared in the end.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from tests.benchmarks.fan_out import free_port

BODY = 60_000  # bytes of a request
FILES = 1000
PATIENCE = 600  # seconds


def fill(directory: Path, files: int, mean: int) -> int:
    """Write so many files, as a checkout has them: in many directories, small ones most often. Return their bytes."""
    rng, total = random.Random(1), 0
    for number in range(files):
        path = directory / f"part{number // 1000:03}/module{number // 20 % 50:02}/file-{number:06}.py"
        if number % 20 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        content = rng.randbytes(int(rng.expovariate(1 / mean)))
        path.write_bytes(content)
        path.chmod(0o755 if number % 50 == 0 else 0o644)
        total += len(content)
    return total


class Connection:
    """One connection that asks for one thing after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.left: int | None = None  # bytes of this chunk, or of the body

    async def ask(self, method: str, path: str, body: bytes = b"") -> None:
        """Send a request and read the head of its answer, which must be 200."""
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{kind}\r\n".encode() + body)
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        if " 200 " not in status:
            raise RuntimeError(status)
        sizes = [int(line.split(":")[1]) for line in lines if line.startswith("content-length:")]
        self.chunked, self.left = not sizes, sizes[0] if sizes else 0

    async def exactly(self, size: int) -> bytes:
        """The next bytes of the body."""
        parts = []
        while size:
            if not self.left:
                self.left = int(await self.reader.readuntil(b"\r\n"), 16)
                if not self.left:
                    raise RuntimeError("the answer ends too early")
            parts.append(await self.reader.readexactly(min(size, self.left)))
            size -= len(parts[-1])
            self.left -= len(parts[-1])
            if self.chunked and not self.left:
                await self.reader.readexactly(2)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def end(self) -> None:
        """Read the chunk that ends the body."""
        assert await self.reader.readexactly(5) == b"0\r\n\r\n"


def place(target: Path, records: dict[str, str], content: bytes, mode: int) -> None:
    """Check a file and put it there, as rsync would."""
    if hashlib.sha256(content).hexdigest() != records["PUSHPULL.sha256"]:
        raise RuntimeError(f"{target} is not what it should be")
    part = f"{target}.part"
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(file, content)
    os.fchmod(file, mode)
    os.close(file)
    when = int(float(records["mtime"]) * 1e9)
    os.utime(part, ns=(when, when))
    os.replace(part, target)  # noqa: PTH105


def extended(data: bytes) -> dict[str, str]:
    """The records of an extended header."""
    found = {}
    while data.strip(b"\0"):
        size, _, rest = data.partition(b" ")
        name, _, value = rest[: int(size) - len(size) - 2].partition(b"=")
        found[name.decode()] = value.decode()
        data = data[int(size) :]
    return found


async def fetch(connection: Connection, paths: list[str], copy: Path, made: set[Path]) -> int:
    """Copy these files; return how many came."""
    await connection.ask("POST", "/bundle", json.dumps({"paths": paths}, ensure_ascii=False).encode())
    records: dict[str, str] = {}
    came = 0
    while (header := await connection.exactly(512)).strip(b"\0"):
        size, kind = int(header[124:135], 8), header[156:157]
        content = (await connection.exactly(-(-size // 512) * 512))[:size]
        if kind == b"x":
            records = extended(content)
            continue
        target = copy / records.get("path", header[:100].rstrip(b"\0").decode())
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        place(target, records, content, int(header[100:107], 8))
        came += 1
    await connection.exactly(512)
    await connection.end()
    return came


async def copy_by_bundles(port: int, copy: Path, at_once: int) -> None:
    """List, then fetch everything."""
    connections = [Connection(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(at_once)]
    await connections[0].ask("GET", "/files")
    files = json.loads(await connections[0].exactly(connections[0].left or 0))["files"]
    batches, size = [list[str]()], 0
    for file in files:
        size += len(json.dumps(file["path"], ensure_ascii=False).encode()) + 2
        if len(batches[-1]) == FILES or size > BODY:
            batches.append([])
            size = 0
        batches[-1].append(file["path"])
    ahead, made = iter(batches), set[Path]()

    async def work(connection: Connection) -> int:
        came = 0
        for paths in ahead:
            came += await fetch(connection, paths, copy, made)
        connection.writer.close()
        return came

    came = sum(await asyncio.gather(*map(work, connections)))
    if came != len(files):
        raise RuntimeError(f"{came:,} of {len(files):,} files came")


def cpu_of(process: psutil.Process) -> float:
    """Seconds of CPU that a process, and those that it has waited for, took."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


@contextlib.contextmanager
def running(*command: object, log: IO[str] | None = None) -> Iterator[psutil.Process]:
    """A server, until the block ends; what it complains of goes to `log`."""
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=log or subprocess.DEVNULL
    ) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def wait_for(port: int) -> None:
    """Return once somebody listens there, and answers what he is asked first."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            asyncio.run(ready(port))
            return
        time.sleep(0.2)
    raise TimeoutError


async def ready(port: int) -> None:
    """Connect, and be told that the server is ready, if it is one that speaks HTTP. Raises OSError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.readline()
    writer.close()
    if not (answer.startswith(b"@RSYNCD") or b" 200 " in answer):
        raise ConnectionError(answer)


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    command.add_argument("--files", type=int, default=24_000)
    command.add_argument("--mean", type=int, default=6000, help="bytes of a file (6000)")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--at-once", type=int, default=2, help="bundles under way (2)")
    options = command.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "watched"
        total = fill(directory, options.files, options.mean)
        print(f"{options.files:,} files, {total / 1e6:,.0f} MB; load {os.getloadavg()[0]:.1f}")
        (config := Path(name) / "rsyncd.conf").write_text(
            f"use chroot = no\nreverse lookup = no\n[m]\npath = {directory}\nread only = yes\n"
            + ("uid = root\ngid = root\n" if os.geteuid() == 0 else "")
        )
        ports = free_port(), free_port()
        served = (sys.executable, "-m", "servers", "file-updates", "--watch", directory, "--port", ports[0])
        daemon = ("rsync", "--daemon", "--no-detach", f"--port={ports[1]}", f"--config={config}")
        took: dict[str, list[tuple[float, float]]] = {"bundles": [], "rsync": []}
        with running(*served) as server, running(*daemon) as other:
            for port in ports:
                wait_for(port)
            for _ in range(options.rounds):
                for contender, process in (("bundles", server), ("rsync", other)):
                    copy = Path(name) / contender
                    shutil.rmtree(copy, ignore_errors=True)
                    os.sync()
                    copy.mkdir()
                    before = cpu_of(process), cpu_of(psutil.Process()), time.perf_counter()
                    if contender == "bundles":
                        asyncio.run(asyncio.wait_for(copy_by_bundles(ports[0], copy, options.at_once), PATIENCE))
                    else:
                        subprocess.run(
                            ["rsync", "-a", f"rsync://127.0.0.1:{ports[1]}/m/", f"{copy}/"],
                            check=True,
                            timeout=PATIENCE,
                        )
                    wall = time.perf_counter() - before[2]
                    time.sleep(0.3)  # until the daemon has waited for its child
                    mine, its = cpu_of(psutil.Process()) - before[1], cpu_of(process) - before[0]
                    took[contender].append((wall, mine + its))
                    print(f"{contender:8} {wall:6.2f} s, CPU {mine:5.2f} s here, {its:5.2f} s the server", flush=True)
            for contender in took:
                subprocess.run(["diff", "-r", directory, Path(name) / contender], check=True)
        for what, which in (("wall clock", 0), ("CPU", 1)):
            ours, theirs = (statistics.median(each[which] for each in took[name]) for name in ("bundles", "rsync"))
            print(f"{what}: {ours:.2f} s to rsync's {theirs:.2f} s, {ours / theirs:.2f} times")


if __name__ == "__main__":
    main()
