"""What watching a tree costs: a start with and without known hashes, an idle minute, an edit, five edits a second.

    python tests/benchmarks/tree.py [--files 1000 10000 100000] [--idle 30] [--edits 40]

The server runs in a process of its own, on files of some ten bytes in directories of a hundred. Costs are its CPU
seconds (user and system), so that a busy machine changes them little; the delay of an edit is from the return of its
write to the event at a subscriber. Beside them stands what an `rsync -a --delete` to an equal copy costs that finds one
edit: what a loop of rsync pays for each round.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

EACH = 100  # files in a directory


@dataclass
class Server:
    """A running server, and a subscriber's stream."""

    process: psutil.Process
    url: str
    stream: socket.socket

    def cpu(self) -> float:
        """CPU seconds so far."""
        times = self.process.cpu_times()
        return times.user + times.system

    def told(self, path: str) -> float:
        """When the event of this path comes."""
        sought, seen = json.dumps(path, ensure_ascii=False).encode(), b""
        while sought not in seen:
            seen = seen[-4096:] + self.stream.recv(65536)
        return time.perf_counter()


@contextlib.contextmanager
def server(directory: Path, *options: str) -> Iterator[tuple[Server, float]]:
    """The server of a directory once its first look is over, and the CPU seconds until then."""
    command = [sys.executable, "-m", "servers", "file-updates", "--watch", str(directory), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().split(" at ")[1].split()[0]
            while httpx.get(f"{url}/healthz", trust_env=False).status_code != 200:
                time.sleep(0.2)
            host, port = url.removeprefix("http://").split(":")
            stream = socket.create_connection((host, int(port)), timeout=60)
            stream.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            found = Server(psutil.Process(process.pid), url, stream)
            yield found, found.cpu()
        finally:
            process.terminate()
            process.wait()


def fill(directory: Path, files: int) -> None:
    """So many small files, all different."""
    for number in range(files):
        if number % EACH == 0:
            below = directory / f"{number // EACH % 50}" / f"{number // EACH}"
            below.mkdir(parents=True)
        (below / f"file-{number % EACH}.txt").write_text(f"{number}\n")


def children_cpu() -> float:
    """CPU seconds of all commands that were waited for."""
    times = os.times()
    return times.children_user + times.children_system


def measure(files: int, idle: float, edits: int) -> None:
    """One line for a tree of so many files."""
    with tempfile.TemporaryDirectory() as name:
        place, copy, state = Path(name, "tree"), Path(name, "copy"), Path(name, "state")
        fill(place, files)
        time.sleep(1)  # the newest is settled
        with server(place, "--state", str(state)) as (_, cold):
            pass  # its end keeps the index
        with server(place, "--state", str(state)) as (one, warm):
            memory = one.process.memory_info().rss
            before = one.cpu()
            time.sleep(idle)
            idle_cost = (one.cpu() - before) / idle
            delays = list[float]()
            before, began = one.cpu(), time.perf_counter()
            for number in range(edits):
                time.sleep(max(0.0, began + number / 5 - time.perf_counter()))
                path = f"{number % 10}/{number % 10}/file-{number % EACH}.txt"
                (place / path).write_text(f"edited {number}\n")
                delays.append(-time.perf_counter() + one.told(path))
            cost = (one.cpu() - before) / (time.perf_counter() - began)
            print(
                f"{files:>7,} files: start {cold:.1f} s of CPU without, {warm:.1f} s with known hashes; "
                f"{memory / 2**20:.0f} MiB; idle {100 * idle_cost:.2f} % of a core; an edit told after "
                f"{1e3 * statistics.median(delays):.0f} ms (worst {1e3 * max(delays):.0f}); five a second "
                f"{100 * cost:.1f} % of a core",
                flush=True,
            )
        sync = ["rsync", "-a", "--delete", f"{place}/", f"{copy}/"]
        subprocess.run(sync, check=True)
        (place / "0/0/file-0.txt").write_text("once more\n")
        before = children_cpu()
        subprocess.run(sync, check=True)
        rsync = children_cpu() - before
        print(f"{'':>15}one round of rsync {rsync:.2f} s of CPU: that of {rsync / (cost / 5):.0f} edits", flush=True)


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--idle", type=float, default=30.0, help="seconds")
    parser.add_argument("--edits", type=int, default=40)
    options = parser.parse_args()
    for files in options.files:
        measure(files, options.idle, options.edits)


if __name__ == "__main__":
    main()
