"""A log that grows: how far a copy is behind, and what that moves: python tests/benchmarks/growing.py [--size BYTES].

    appender ─▶ DIR/log ── python -m servers file-updates ── Wire ── python -m lab.mirror ─▶ COPY/log ─▶ watched

Lines are appended at a steady rate, each in one write. COPY is looked at every few milliseconds: behind is how long ago
the log had grown past what stands there. What stands there has to end with a whole line, to be what the log was as far
as lines were appended, and all of it at the end. Exit status 1 if it is not.
"""

import argparse
import asyncio
import contextlib
import filecmp
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil

from lab.proxies.wire import Wire

LINE = 100  # bytes
LOOK = 0.005  # s


class Appender(threading.Thread):
    """Appends so many lines a second; `times[n]` is when line n stood there."""

    def __init__(self, log: Path, rate: float) -> None:
        super().__init__(daemon=True)
        self.log, self.rate, self.over = log, rate, threading.Event()
        self.times = list[float]()

    def line(self, number: int) -> bytes:
        """One of LINE bytes."""
        return f"line {number}".encode().ljust(LINE - 1, b".") + b"\n"

    def run(self) -> None:
        """Until it is over."""
        begin = time.monotonic()
        with self.log.open("ab", buffering=0) as file:
            while not self.over.wait(max(0.0, begin + len(self.times) / self.rate - time.monotonic())):
                file.write(self.line(len(self.times)))
                self.times.append(time.monotonic())


@contextlib.asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A running command, and its first line."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout
        first = (await process.stdout.readline()).decode()
        reading = asyncio.create_task(process.stdout.read())
        yield process, first
    finally:
        process.terminate()
        await process.wait()
        await reading


def healthy(url: str) -> None:
    """Return when the server has looked at its directory."""
    while httpx.get(f"{url}/healthz", trust_env=False).status_code != 200:
        time.sleep(0.2)


def same(log: Path, copy: Path, until: float) -> bool:
    """Whether the copy is the log, by then."""
    while copy.stat().st_size != log.stat().st_size and time.monotonic() < until:
        time.sleep(0.1)
    return filecmp.cmp(log, copy, shallow=False)


def look(copy: Path, base: int, appender: Appender, wrong: list[str]) -> int:
    """How many whole lines have come; what is not as it was is noted."""
    with copy.open("rb") as file:
        file.seek(base)
        tail = file.read()
    lines, rest = divmod(len(tail), LINE)
    if rest or tail != b"".join(map(appender.line, range(lines))):
        wrong.append(f"{len(tail)} bytes that were never its end")
    return lines


async def measure(place: Path, options: argparse.Namespace) -> bool:
    """One line for a log of this size; whether the copy was right all the time."""
    log, copy, wrong = place / "dir" / "log", place / "copy" / "log", list[str]()
    log.parent.mkdir()
    with log.open("wb") as file:
        for _ in range(options.size // 1_000_000):
            file.write(os.urandom(1_000_000))
    os.sync()  # a log that has been there for a while
    base = log.stat().st_size
    async with program("servers", "file-updates", "--watch", str(log.parent), "--port", "0") as (server, said):
        url = said.split(" at ")[1].split()[0]
        await asyncio.to_thread(healthy, url)
        with Wire(url) as wire:
            async with program("lab.mirror", wire.url, str(copy.parent)) as (mirror, _):
                both = [psutil.Process(each.pid) for each in (server, mirror)]
                before = [(sum(each.cpu_times()[:2]), each.io_counters().write_bytes) for each in both]
                moved, appender, behind = wire.bytes["down"], Appender(log, options.rate), list[float]()
                await asyncio.to_thread(os.sync)
                appender.start()
                end = time.monotonic() + options.seconds
                last, lines = (0, 0), 0
                while (now := time.monotonic()) < end:
                    status = copy.stat()
                    if (status.st_ino, status.st_size) != last:
                        last = status.st_ino, status.st_size
                        lines = await asyncio.to_thread(look, copy, base, appender, wrong)
                    times = appender.times
                    behind.append(now - times[lines] if lines < len(times) else 0.0)
                    await asyncio.sleep(LOOK)
                appender.over.set()
                appender.join()
                after = [(sum(each.cpu_times()[:2]), each.io_counters().write_bytes) for each in both]
                moved = wire.bytes["down"] - moved
                if not await asyncio.to_thread(same, log, copy, end + 60):
                    wrong.append("at the end it is not the same")
    cpu = [(a[0] - b[0]) / options.seconds for a, b in zip(after, before, strict=True)]
    disk, half = after[1][1] - before[1][1], len(behind) // 2
    print(
        f"{base / 1e6:,.0f} MB, {options.rate:g} lines a second for {options.seconds:g} s: behind by "
        f"{statistics.median(behind):.2f} s at the median, {max(behind):.2f} s at most, {max(behind[half:]):.2f} s in "
        f"the second half; {moved:,} bytes moved for "
        f"{LINE * len(appender.times):,} appended; the mirror had {disk / 1e6:,.0f} MB written; server "
        f"{100 * cpu[0]:.0f} %, mirror {100 * cpu[1]:.0f} % of a core; {len(behind):,} looks",
        flush=True,
    )
    for line in wrong[:5]:
        print(line)
    return not wrong


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=500_000_000)
    parser.add_argument("--rate", type=float, default=10.0, help="lines a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        return int(not asyncio.run(measure(Path(place).resolve(), options)))


if __name__ == "__main__":
    sys.exit(main())
