"""A crowd of event streams in a process of its own: who got what, and how late the last of them was.

    python -m lab.cost.crowd URL --clients 100 1000 --seconds 2 ─▶ one line of JSON ─▶ Heard, Heard

The clients are raw asyncio protocols, cheaper than any server. What came is checked by its numbers: lost, twice, out of
order. Delays are by the wall clock, which two processes of one host share. Beyond what one source address has ports
for, the connections come from 127.0.0.2, 127.0.0.3, ... (Linux; elsewhere those addresses are not there by themselves).
"""

import argparse
import asyncio
import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import numpy as np
import psutil
from numpy.typing import NDArray

from lab.cost.processes import ServerProcess, cpu_seconds
from servers.limits import check_positive, check_whole

NUMBER = re.compile(rb'"seq":(\d+)')
PUBLISHED = re.compile(rb'"seq":(\d+).*?"published":(\d+\.\d+)')
TOGETHER = 50  # handshakes under way at one time
SETTLE = 0.3  # s from the last answer to the beginning of what counts
PER_ADDRESS = 25_000  # connections from one source address, of the 28 232 ports that Linux gives out
LIMIT = 60.0  # s beside the time that was asked for


@dataclass(frozen=True)
class Heard:
    """What a crowd heard: `deliveries` in all, and of each update (but the last) when the first and last client had it.

    `first` and `last` in s after it was published, `cpu` what the crowd itself used (s) and `server_cpu` the server,
    `memory` the server's (bytes), `took` s from the first to the last handshake.
    """

    clients: int
    deliveries: int
    lost: int
    duplicated: int
    out_of_order: int
    first: list[float]
    last: list[float]
    cpu: float
    took: float
    server_cpu: float = math.nan
    memory: float = math.nan

    def delay(self, q: float = 0.95) -> float:
        """How late the last client had a share `q` of the updates (s); NaN where none came."""
        return float(np.quantile(self.last, q)) if self.last else math.nan


@dataclass
class Crowd:
    """What is shared by the protocols."""

    place: str
    open: int = 0
    counts: bool = False
    deliveries: int = 0
    lost: int = 0
    duplicated: int = 0
    published: dict[int, float] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    got: dict[int, int] = field(default_factory=dict)
    out_of_order: int = 0


class Ear(asyncio.Protocol):
    """One event stream."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd, self.rest, self.seq = crowd, b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream, from now on."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(f"GET /events HTTP/1.1\r\nHost: {self.crowd.place}\r\n\r\n".encode())

    def connection_lost(self, error: Exception | None) -> None:
        """Be one less."""
        self.crowd.open -= 1

    def data_received(self, data: bytes) -> None:
        """Note every whole event."""
        now, crowd = time.time(), self.crowd
        if not self.seq and not self.rest:
            crowd.open += 1
        whole, blank, rest = (self.rest + data).rpartition(b"\n\n")
        self.rest = (rest if blank else self.rest + data) or b"\n"
        for found in NUMBER.findall(whole):
            self.note(int(found), whole, now)

    def note(self, seq: int, text: bytes, now: float) -> None:
        """One delivery."""
        crowd = self.crowd
        if seq not in crowd.published:
            crowd.published |= {int(n): float(at) for n, at in PUBLISHED.findall(text)}
        if self.seq and seq != self.seq + 1:
            crowd.lost += max(0, seq - self.seq - 1)
            crowd.duplicated += seq == self.seq
            crowd.out_of_order += seq < self.seq
        self.seq = max(seq, self.seq)
        crowd.got[seq] = crowd.got.get(seq, 0) + 1
        crowd.first.setdefault(seq, now)
        crowd.last[seq] = now
        crowd.deliveries += crowd.counts


async def gather(url: str, clients: int, seconds: float, pid: int = 0) -> Heard:
    """Connect, listen for so long, leave; `pid` is the server's process, 0 for not known.

    Raises RuntimeError when a connection ends by itself.
    """
    check_whole(clients=clients, least=1)
    check_positive(seconds=seconds)
    place = urlsplit(url)
    loop, crowd, begin = asyncio.get_running_loop(), Crowd(place.netloc), time.perf_counter()
    transports: list[asyncio.BaseTransport] = []
    async with asyncio.timeout(LIMIT + clients / 100):
        for first in range(0, clients, TOGETHER):
            source = (f"127.0.0.{1 + first // PER_ADDRESS}", 0) if first >= PER_ADDRESS else None
            some = range(first, min(first + TOGETHER, clients))
            made = [
                loop.create_connection(
                    lambda: Ear(crowd), str(place.hostname), int(place.port or 80), local_addr=source
                )
                for _ in some
            ]
            transports += [transport for transport, _ in await asyncio.gather(*made)]
            while crowd.open < len(transports):  # noqa: ASYNC110  # counted by the protocols
                await asyncio.sleep(0.002)
    took = time.perf_counter() - begin
    await asyncio.sleep(SETTLE)
    server = psutil.Process(pid) if pid else None
    since, cpu = time.time(), time.process_time()
    of_server = cpu_seconds(server) if server else math.nan
    crowd.counts = True
    await asyncio.sleep(seconds)
    of_server = cpu_seconds(server) - of_server if server else math.nan
    crowd.counts, until, used = False, time.time(), time.process_time() - cpu
    await asyncio.sleep(SETTLE)
    if crowd.open != clients:
        raise RuntimeError(f"{crowd.open} of {clients} streams are left")
    for transport in transports:
        transport.close()
    seqs = [seq for seq, at in sorted(crowd.published.items()) if since <= at <= until]
    missed = sum(clients - min(clients, crowd.got[seq]) for seq in seqs)
    first_last: NDArray[np.float64] = np.array(
        [(crowd.first[s] - crowd.published[s], crowd.last[s] - crowd.published[s]) for s in seqs]
    ).reshape(-1, 2)
    return Heard(
        clients, crowd.deliveries, max(crowd.lost, missed), crowd.duplicated, crowd.out_of_order,
        first_last[:, 0].tolist(), first_last[:, 1].tolist(), used, took,
        of_server, server.memory_info().rss if server else math.nan,
    )  # fmt: skip


async def listen(url: str, sizes: Sequence[int], seconds: float, pid: int = 0) -> list[Heard]:
    """What crowds of these sizes hear, one after the other, in a process of their own; `pid` is the server's.

    Raises RuntimeError with what that process said when it fails.
    """
    options = [f"--seconds={seconds}", f"--pid={pid}", "--clients", *map(str, sizes)]
    command = [sys.executable, "-m", "lab.cost.crowd", url, *options]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(LIMIT + len(sizes) * seconds + sum(sizes) / 50):
            out, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the crowd failed: {said.decode().strip().splitlines()[-1:]}")
    return [Heard(**heard) for heard in json.loads(out)]


async def by_size(model: str, sizes: Sequence[int], *, rate: float = 4.0, seconds: float = 1.5) -> dict[int, Heard]:
    """What crowds of these sizes hear of one server in a process of its own, `rate` updates a second, evenly spaced.

    None of them is coalesced: to a crowd, what was left out for that looks lost.
    """
    check_positive(rate=rate, seconds=seconds)
    server = ServerProcess(model, rate=rate, regular=True, no_coalesce=model == "file-updates")
    await asyncio.to_thread(server.__enter__)
    try:
        return dict(zip(sizes, await listen(server.url, sizes, seconds, server.process.pid), strict=True))
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


def slope(found: Mapping[int, Heard]) -> tuple[float, float]:
    """(p, c) of the line p + n c through the last clients' median delays (s), p not below 0."""
    return _line({size: heard.delay(0.5) for size, heard in found.items()})


def cost(found: Mapping[int, Heard]) -> tuple[float, float]:
    """(p, c) of the line p + n c through the server's CPU seconds for an update."""
    return _line({size: heard.server_cpu / (heard.deliveries / size) for size, heard in found.items()})


def _line(values: Mapping[int, float]) -> tuple[float, float]:
    sizes, seconds = np.array(list(values), float), np.array(list(values.values()))
    each, begin = np.polyfit(sizes, seconds, 1)
    if begin < 0:
        return 0.0, float((sizes @ seconds) / (sizes @ sizes))
    return float(begin), float(each)


def main(arguments: list[str] | None = None) -> int:
    """Print what a crowd heard."""
    p = argparse.ArgumentParser(prog="python -m lab.cost.crowd", description="Event streams, many at once.")
    p.add_argument("url")
    p.add_argument("--clients", type=int, nargs="+", default=[100], help="one crowd after the other")
    p.add_argument("--seconds", type=float, default=2.0)
    p.add_argument("--pid", type=int, default=0, help="the server's process, to see what it uses")
    options = p.parse_args(arguments)
    try:
        room(max(options.clients))
        heard = [asyncio.run(gather(options.url, each, options.seconds, options.pid)) for each in options.clients]
    except (ValueError, RuntimeError, OSError) as error:
        p.error(str(error) or type(error).__name__)
    print(json.dumps([asdict(each) for each in heard]))
    return 0


def room(clients: int) -> None:
    """Raise this process's limit of open files so that the clients fit; ValueError where it may not be."""
    if sys.platform == "win32":
        return
    import resource  # not on Windows

    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = clients + 100
    if needed > soft:
        if most != resource.RLIM_INFINITY and most < needed:
            raise ValueError(f"{clients:,} clients need {needed:,} open files, and {most:,} are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


if __name__ == "__main__":
    sys.exit(main())
