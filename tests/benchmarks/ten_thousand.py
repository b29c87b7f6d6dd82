"""Many idle subscribers of the capstone's service, and one update for all of them.

    python tests/benchmarks/ten_thousand.py [--clients 10000] [--updates 3]

The server runs in a process of its own and watches a directory; here are its clients, raw asyncio protocols. A file
is written; how long it takes until everybody has been told, and that nobody was left out, is printed.
"""

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.benchmarks.fan_out import free_port

BEGUN, UPDATE = b"\nid: ", b"event: update\n"
SPARE = 200  # file descriptors beside the sockets


class Subscriber(asyncio.Protocol):
    """Counts its updates."""

    def __init__(self, crowd: "Crowd") -> None:
        self.crowd, self.begun, self.updates, self.tail = crowd, False, 0, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.crowd.open += 1
        transport.write(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

    def connection_lost(self, error: Exception | None) -> None:
        self.crowd.open -= 1

    def data_received(self, data: bytes) -> None:
        seen = self.tail + data
        if not self.begun and BEGUN in seen:
            self.begun = True
            self.crowd.begun += 1
        self.updates += seen.count(UPDATE)
        self.crowd.updates += seen.count(UPDATE)
        self.crowd.latest = time.perf_counter()
        self.tail = seen[-len(UPDATE) + 1 :]


class Crowd:
    """All subscribers together."""

    def __init__(self) -> None:
        self.open = self.begun = self.updates = 0
        self.latest = 0.0
        self.members: list[Subscriber] = []

    def member(self) -> Subscriber:
        """One more."""
        self.members.append(Subscriber(self))
        return self.members[-1]


async def reach(condition: str, count: int, crowd: Crowd, seconds: float) -> None:
    """Wait until as many are as far."""
    async with asyncio.timeout(seconds):
        while getattr(crowd, condition) < count:  # noqa: ASYNC110  # counted by the protocols
            await asyncio.sleep(0.005)


async def run(clients: int, updates: int) -> None:
    loop, crowd, port = asyncio.get_running_loop(), Crowd(), free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "servers", "file-updates", "--port", str(port), "--watch", directory]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout is not None
            await process.stdout.readline()
            server = psutil.Process(process.pid)
            empty, start = server.memory_info().rss, time.perf_counter()
            for first in range(0, clients, 100):
                some = range(first, min(first + 100, clients))
                await asyncio.gather(*(loop.create_connection(crowd.member, "127.0.0.1", port) for _ in some))
            await reach("begun", clients, crowd, 120)
            memory = (server.memory_info().rss - empty) / 1024 / clients
            print(f"{clients} subscribers in {time.perf_counter() - start:.1f} s, {memory:.1f} KiB each")
            before, seconds = sum(server.cpu_times()[:2]), 5
            await asyncio.sleep(seconds)
            print(f"idle: {(sum(server.cpu_times()[:2]) - before) / seconds:.1%} of one core")
            for number in range(1, updates + 1):
                written = time.perf_counter()
                await asyncio.to_thread(Path(directory, "file.txt").write_text, f"{number}")
                await reach("updates", number * clients, crowd, 60)
                took, cpu = crowd.latest - written, sum(server.cpu_times()[:2])
                print(f"update {number}: all {clients} told {took:.2f} s after the file was written")
            lost = sum(member.updates != updates for member in crowd.members)
            print(f"open {crowd.open}, lost {lost}, server's CPU in all {cpu:.1f} s")
            if lost or crowd.open != clients:
                raise SystemExit(1)
        finally:
            process.kill()
            await process.wait()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", type=int, default=10_000)
    p.add_argument("--updates", type=int, default=3)
    options = p.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = options.clients + SPARE
    if most != resource.RLIM_INFINITY and most < needed:
        raise SystemExit(f"needs {needed} open files, and the limit is {most}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))  # the server inherits it
    asyncio.run(run(options.clients, options.updates))


if __name__ == "__main__":
    main()
