"""What following costs beside rsync: a checkout, a directory renamed; and what --parallel is for.

    python tests/benchmarks/following.py [--files 10000] [--switched 3000] [--rounds 3] [checkout rename parallel]

A real `git checkout` changes files while `python -m lab.mirror` follows: time from its end until the copy has it all. A
directory with all of them is renamed: the same, nothing is fetched, and a reader that never stops looks whether a name
is missing. Beside that an `rsync -a --delete` over TCP to a copy of its own, begun when the change was done; the two in
turns. Then files that travel alone are copied over a link with a round trip of 50 ms, some at a time.
"""

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil

from lab.bench import NameReader
from lab.proxies.wire import Wire
from tests.benchmarks.fan_out import free_port
from tests.benchmarks.first_copy import cpu_of, fill, running, wait_for

PATIENCE = 120  # s
TRIP = 0.05  # s
ALONE = 400_000  # bytes of a file that travels alone


class Follower:
    """A mirror that runs, and what it has said of each change."""

    def __init__(self, url: str, copy: Path) -> None:
        command = [sys.executable, "-m", "lab.mirror", url, str(copy), "--max-delete", "1000000"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.said = list[str]()
        self.reading = threading.Thread(target=self.read)
        self.reading.start()

    def read(self) -> None:
        """Keep what it says."""
        assert self.process.stdout
        self.said += iter(self.process.stdout.readline, "")

    def fetched(self) -> int:
        """How many files it has fetched."""
        return sum(line.split()[4] == "fetched" for line in self.said if " ms " in line)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()
        self.reading.join()


def differs(one: Path, other: Path) -> bool:
    """Whether anything differs in name, size or time."""
    here, there = found(one), found(other)
    return here.keys() != there.keys() or not all(alike(here[path], there[path]) for path in here)


def alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two files have the same size and time, to the resolution of a JSON number."""
    return one[0] == other[0] and abs(one[1] - other[1]) < 1000


def found(top: Path) -> dict[str, tuple[int, int]]:
    """Path to size and time (ns) of each file; the mirror's own and git's are not the tree's."""
    files = {}
    for here, below, names in os.walk(top):
        below[:] = [name for name in below if name not in (".mirror", ".git")]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(f"{here}/{name}")  # noqa: PTH116
                files[f"{here}/{name}"[len(str(top)) :]] = status.st_size, status.st_mtime_ns
    return files


def wait(what: Callable[[], bool]) -> None:
    """Return when it is so. Raises TimeoutError."""
    until = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.02)


def level(directory: Path, copy: Path, begun: float) -> float:
    """How long after `begun` the copy was the directory: by a look that costs little, then by a full one."""
    aim = found(directory)
    left = list(aim)

    def has_come() -> bool:
        while left:
            try:
                status = (copy / left[-1][1:]).stat()
            except FileNotFoundError:
                return False
            if not alike((status.st_size, status.st_mtime_ns), aim[left[-1]]):
                return False
            left.pop()
        return True

    wait(has_come)
    took = time.monotonic() - begun
    if differs(directory, copy):
        wait(lambda: not differs(directory, copy))
        took = time.monotonic() - begun
    return took


@contextlib.contextmanager
def served(directory: Path, log: IO[str] | None = None) -> Iterator[tuple[str, str, psutil.Process, psutil.Process]]:
    """The addresses at which file-updates and rsync's daemon have a directory, and their processes.

    What file-updates complains of goes to `log`.
    """
    (config := directory.with_name("rsyncd.conf")).write_text(
        f"use chroot = no\nreverse lookup = no\n[m]\npath = {directory}\nread only = yes\n"
        + ("uid = root\ngid = root\n" if os.geteuid() == 0 else "")
    )
    ports = free_port(), free_port()
    command = (sys.executable, "-m", "servers", "file-updates", "--watch", directory, "--port", ports[0])
    daemon = ("rsync", "--daemon", "--no-detach", f"--port={ports[1]}", f"--config={config}")
    with running(*command, "--ignore", ".git", log=log) as server, running(*daemon) as other:
        for port in ports:
            wait_for(port)
        yield f"http://127.0.0.1:{ports[0]}", f"rsync://127.0.0.1:{ports[1]}/m/", server, other


def compare(place: Path, change: Callable[[int], None], rounds: int, moved: tuple[str, str] | None = None) -> None:
    """Change a directory some times; one line for each, and the ratios; once more under a reader's eyes if it moves."""
    directory, copy, other = place / "watched", place / "copy", place / "other"
    took, cpu = (dict[str, list[float]](mirror=[], rsync=[]) for _ in range(2))
    with served(directory) as (url, module, server, daemon):
        sync = ["rsync", "-a", "--delete", "--exclude=.git", module, f"{other}/"]
        subprocess.run(sync, check=True)
        follower = Follower(url, copy)
        both = server, psutil.Process(follower.process.pid)
        try:
            level(directory, copy, 0.0)
            for number in range(rounds):
                os.sync()
                fetched, before = follower.fetched(), sum(map(cpu_of, both))
                change(number)
                took["mirror"].append(level(directory, copy, time.monotonic()))
                cpu["mirror"].append(sum(map(cpu_of, both)) - before)
                here = psutil.Process().cpu_times()
                begun, before = time.monotonic(), cpu_of(daemon) + here.children_user + here.children_system
                subprocess.run(sync, check=True)
                took["rsync"].append(time.monotonic() - begun)
                time.sleep(0.3)  # until the daemon has waited for its child
                here = psutil.Process().cpu_times()
                cpu["rsync"].append(cpu_of(daemon) + here.children_user + here.children_system - before)
                print(
                    f"  {took['mirror'][-1]:.2f} s to rsync's {took['rsync'][-1]:.2f} s, CPU of both ends "
                    f"{cpu['mirror'][-1]:.2f} s to {cpu['rsync'][-1]:.2f} s, {follower.fetched() - fetched:,} fetched",
                    flush=True,
                )
            if moved:
                names = [copy / name for name in moved]
                with NameReader(*(names if rounds % 2 == 0 else names[::-1])) as reader:
                    change(rounds)
                    level(directory, copy, 0.0)
                print(f"  a reader saw {reader.fewest:,} names at least, in {reader.looks} looks")
        finally:
            follower.stop()
    subprocess.run(["diff", "-r", "--exclude=.git", "--exclude=.mirror", directory, copy], check=True)
    for what, seconds in (("wall clock", took), ("CPU", cpu)):
        ours, theirs = (statistics.median(each) for each in seconds.values())
        print(f"  {what}: {ours / theirs:.2f} times rsync's", flush=True)


def checkout(place: Path, options: argparse.Namespace) -> None:
    """Two revisions that differ in so many files."""
    directory, rng = place / "watched", random.Random(2)
    directory.mkdir()

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", directory, "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True)

    fill(directory, options.files, 3000)
    git("init", "-q", "-b", "one")
    for revision in ("one", "two"):
        if revision == "two":
            git("checkout", "-q", "-b", "two")
            for path in rng.sample(sorted(directory.rglob("*.py")), options.switched):
                path.write_bytes(rng.randbytes(rng.randrange(6000)))
        git("add", "-A")
        git("commit", "-q", "-m", revision)
    print(f"git checkout across {options.switched:,} of {options.files:,} files")
    compare(place, lambda number: git("checkout", "-q", ("one", "two")[number % 2]), options.rounds)


def rename(place: Path, options: argparse.Namespace) -> None:
    """A directory with all files, to another name and back."""
    directory, names = place / "watched", ("old", "new")
    fill(directory / "old", options.files, 3000)
    print(f"a directory of {options.files:,} files renamed")

    def move(number: int) -> None:
        (directory / names[number % 2]).rename(directory / names[1 - number % 2])

    compare(place, move, options.rounds, names)


def parallel(place: Path, options: argparse.Namespace) -> None:
    """Files that travel alone, over a link with a round trip."""
    (directory := place / "watched").mkdir()
    for number in range(40):
        (directory / f"{number}").write_bytes(random.Random(number).randbytes(ALONE))
    print(f"40 files of {ALONE:,} bytes over a round trip of {1e3 * TRIP:.0f} ms")
    with served(directory) as (url, *_), Wire(url, delay=TRIP / 2) as wire:
        for at_once in (1, 2, 4, 8, 16):
            copy, begun = place / "copy", time.monotonic()
            command = [sys.executable, "-m", "lab.mirror", wire.url, str(copy), "--once", "--parallel", str(at_once)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            print(f"  --parallel {at_once}: {time.monotonic() - begun:.2f} s", flush=True)
            subprocess.run(["diff", "-r", "--exclude=.mirror", directory, copy], check=True)
            shutil.rmtree(copy)


def main() -> None:
    """Run those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["checkout", "rename", "parallel"])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--switched", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for what in options.what:
        with tempfile.TemporaryDirectory() as name:
            {"checkout": checkout, "rename": rename, "parallel": parallel}[what](Path(name).resolve(), options)


if __name__ == "__main__":
    main()
