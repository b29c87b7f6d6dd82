"""A checkout's day, beside rsync: python tests/benchmarks/scenario.py [--files N] [--seconds S] [--seed N].

    a git checkout ── python -m servers file-updates ── 2 x python -m lab.mirror ─▶ copies ◀─ diff -r, Sentry
                   ── rsync --daemon ── 2 x rsync, after each step ─▶ copies of its own

Both copies are made, and follow while the checkout goes to two other revisions and back, a directory with half of the
files is renamed, a log grows, and the directory is unmounted (root: a bind mount; else it is moved away) and comes
back. `diff -r` runs in a loop, and is to find nothing after each step; a Sentry reads the copies all the time. A step's
time is from its end until both copies are the same; git's and rsync's own copies do not count. Exit status 1 if
anything was lost, incomplete or deleted.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.bench import NameReader
from tests.benchmarks.first_copy import fill
from tests.benchmarks.following import Follower, found, level, served, wait
from tests.benchmarks.growing import LINE, Appender, look

APART = ("--exclude=.git", "--exclude=.mirror")
BASE = 1_000_000  # bytes of the log before it grows
HOLD = 3.0  # s for which the directory stays away
FETCHED = re.compile(r" (\w+) +([\d,]+) bytes ")
HEAD = (
    "| Step | both copies are the same after | two of rsync's | ratio | fetched, by both | bytes, to both |\n|---|"
    + 5 * "---|"
)


class Sentry(threading.Thread):
    """Reads all files of all copies, for ever: what no revision holds, or what none lacks and is missing, is wrong."""

    def __init__(self, copies: list[Path], whole: set[str], always: set[str]) -> None:
        super().__init__(daemon=True)
        self.copies, self.whole, self.always = copies, whole, always
        self.complete, self.over = False, threading.Event()
        self.wrong, self.looks = set[str](), 0

    def run(self) -> None:
        """Until it is over."""
        for copy in itertools.cycle(self.copies):
            complete, names = self.complete, found(copy)
            self.over.wait(0.01)
            for name in names:
                if self.over.is_set():
                    return
                with contextlib.suppress(FileNotFoundError):
                    digest = hashlib.sha256(Path(f"{copy}{name}").read_bytes()).hexdigest()
                    if name != "/log" and digest not in self.whole:
                        self.wrong.add(f"{copy.name}{name} is none of its contents")
            missing = self.always - names.keys() if complete else ()
            self.wrong |= {f"{copy.name}{name} is missing" for name in missing if not Path(f"{copy}{name}").exists()}
            self.looks += complete


class Differ(threading.Thread):
    """Runs `diff -r` of the directory and each copy, for ever; `same` is when its last run that found nothing began.

    Between steps, when all has `settled`, none may find anything.
    """

    def __init__(self, directory: Path, copies: list[Path]) -> None:
        super().__init__(daemon=True)
        self.directory, self.copies, self.over = directory, copies, threading.Event()
        self.same, self.settled, self.wrong, self.runs = dict.fromkeys(copies, 0.0), 0.0, list[str](), 0

    def run(self) -> None:
        """Until it is over."""
        for copy in itertools.cycle(self.copies):
            if self.over.is_set():
                return
            begun, settled = time.monotonic(), self.settled
            differences = self.found(copy)
            self.runs += copy.exists()
            if not differences:
                self.same[copy] = begun
            elif settled and settled == self.settled:
                self.wrong.append(f"nothing happened, and diff -r found {differences!r}")

    def found(self, copy: Path) -> str:
        """What one run finds, as far as it is worth showing."""
        run = subprocess.run(["diff", "-rq", *APART, self.directory, copy], capture_output=True, check=False)
        said = (run.stdout + run.stderr)[:300].decode(errors="replace")
        return f"status {run.returncode}: {said}" if run.returncode else ""

    def settle(self) -> None:
        """Return when runs that began from now on found nothing. Raises TimeoutError."""
        now = time.monotonic()
        wait(lambda: min(self.same.values()) > now)
        self.settled = now


class Disk:
    """A directory of which `real` is another name; it can go away and come back."""

    def __init__(self, place: Path) -> None:
        self.directory, self.real = place / "watched", place / "disk"
        self.mounts, self.there = os.geteuid() == 0, False
        for name in (self.directory, self.real):
            name.mkdir()

    def come(self) -> None:
        """Mount it, or move it there."""
        if self.mounts:
            subprocess.run(["mount", "--bind", self.real, self.directory], check=True)
        else:
            self.directory.rmdir()
            self.real.rename(self.directory)
            self.real.symlink_to(self.directory)
        self.there = True

    def go(self) -> None:
        """Unmount it, or move it away: an empty directory is there."""
        if not self.there:
            return
        if self.mounts:
            wait(self.unmounted)
        else:
            self.real.unlink()
            self.directory.rename(self.real)
            self.directory.mkdir()
        self.there = False

    def unmounted(self) -> bool:
        """Unmount it, unless somebody is in it just now."""
        return subprocess.run(["umount", self.directory], stderr=subprocess.DEVNULL, check=False).returncode == 0


class Scenario:
    """What is served, what follows, and the table's rows."""

    def __init__(self, differ: Differ, rsync: list[str]) -> None:
        self.differ, self.rsync = differ, rsync
        self.followers, self.notes = list[Follower](), list[str]()

    def traffic(self) -> tuple[int, int]:
        """How many files have been fetched, and bytes."""
        said = [match for follower in self.followers for line in follower.said if (match := FETCHED.search(line))]
        return sum(match[1] == "fetched" for match in said), sum(int(match[2].replace(",", "")) for match in said)

    def step(self, name: str, change: Callable[[], str | None]) -> int:
        """Make a change, wait until all is the same, and print a row. Return how many files were fetched."""
        self.differ.settled, (files, size) = 0.0, self.traffic()
        if note := change():
            self.notes.append(f"{name}: {note}")
        begun = time.monotonic()
        try:
            took = max(level(self.differ.directory, copy, begun) for copy in self.differ.copies)
            self.differ.settle()
        except TimeoutError:
            raise TimeoutError(f"{name}: {[self.differ.found(copy) for copy in self.differ.copies]}") from None
        files, size = (now - before for now, before in zip(self.traffic(), (files, size), strict=True))
        begun = time.monotonic()
        runs = [subprocess.Popen([*self.rsync, f"{copy}-rsync/"]) for copy in self.differ.copies]
        statuses = [run.wait() for run in runs]
        if any(statuses):
            raise RuntimeError("rsync failed")
        rsync = time.monotonic() - begun
        print(f"| {name} | {took:.1f} s | {rsync:.1f} s | {took / rsync:.2f} | {files:,} | {size:,} |", flush=True)
        return files


def git(directory: Path, *words: str) -> None:
    """Have it done there."""
    who = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "gc.auto=0")
    subprocess.run(["git", "-C", directory, *who, *words], check=True)


def revisions(directory: Path, files: int, rng: random.Random) -> tuple[set[str], set[str]]:
    """Make a checkout with three of them; return the hashes of all contents, and the paths that none changes."""
    fill(directory / "src", files, 3000)
    for module in list(directory.glob("src/*/*[02468]")):
        (to := directory / "old" / module.relative_to(directory / "src")).parent.mkdir(parents=True, exist_ok=True)
        module.rename(to)
    git(directory, "init", "-q", "-b", "one")
    seen = list[dict[str, str]]()
    for revision in ("one", "two", "three"):
        if revision != "one":
            git(directory, "checkout", "-q", "-b", revision)
            paths = rng.sample(sorted(directory.glob("*/*/*/*.py")), files // 5)
            share = len(paths) // 10
            for path in paths[:share]:
                path.unlink()
            for path in paths[share : 2 * share]:
                path.rename(path.with_name(f"renamed-{path.name}"))
            for path in paths[2 * share :]:
                path.write_bytes(rng.randbytes(rng.randrange(6000)))
            for path in paths[:share]:
                path.with_name(f"new-{path.name}").write_bytes(rng.randbytes(rng.randrange(6000)))
        git(directory, "add", "-A")
        git(directory, "commit", "-q", "-m", revision)
        seen.append(
            {name: hashlib.sha256(Path(f"{directory}{name}").read_bytes()).hexdigest() for name in found(directory)}
        )
    git(directory, "checkout", "-q", "one")
    whole = {digest for revision in seen for digest in revision.values()}
    same = set.intersection(*(set(revision.items()) for revision in seen))
    return whole, {name for name, _ in same if name.startswith("/src/")}


def append(directory: Path, copies: list[Path], seconds: float, wrong: list[str]) -> str:
    """Ten lines a second, and look at what the copies have; return what that was."""
    appender, lines = Appender(directory / "log", 10), 0
    appender.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for copy in copies:
            lines = max(lines, look(copy / "log", BASE, appender, wrong))
        time.sleep(0.02)
    appender.over.set()
    appender.join()
    return f"{LINE * len(appender.times):,} bytes appended; {lines} of {len(appender.times)} lines were seen meanwhile"


def away(disk: Disk, copies: list[Path], log: Path, wrong: list[str]) -> str:
    """Have the disk go, and something change on it; the copies keep all, and the server says what is returned."""
    before, said = [found(copy) for copy in copies], len(log.read_text())
    disk.go()
    (disk.real / "src" / "late").write_bytes(b"late")  # a hint that names what is not there any more
    wait(lambda: "nothing is published" in log.read_text()[said:])
    until = time.monotonic() + HOLD
    while time.monotonic() < until:
        if [found(copy) for copy in copies] != before:
            wrong.append("a copy changed when the directory was away")
        time.sleep(0.1)
    disk.come()
    return log.read_text()[said:].strip().replace(str(disk.directory), "DIR")


@contextlib.contextmanager
def noted(wrong: list[str]) -> Iterator[None]:
    """Note what does not come in time."""
    try:
        yield
    except TimeoutError as error:
        wrong.append(f"not over in time: {error}")


def play(place: Path, options: argparse.Namespace) -> list[str]:
    """All steps; return what was wrong."""
    disk, copies, wrong = Disk(place), [place / "copy-0", place / "copy-1"], list[str]()
    disk.come()
    directory, log = disk.directory, place / "server.log"
    with contextlib.ExitStack() as at_end:
        at_end.callback(disk.go)
        whole, always = revisions(disk.real, options.files, random.Random(options.seed))
        whole.add(hashlib.sha256(b"late").hexdigest())
        (directory / "log").write_bytes(random.Random(options.seed).randbytes(BASE))
        os.sync()
        url, module, *_ = at_end.enter_context(served(directory, at_end.enter_context(log.open("w"))))
        differ, sentry = Differ(directory, copies), Sentry(copies, whole, always)
        scenario = Scenario(differ, ["rsync", "-a", "--delete", "--exclude=.git", module])
        print(f"{options.files:,} files, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n{HEAD}", flush=True)
        at_end.enter_context(noted(wrong))
        for thread in (differ, sentry):
            thread.start()
            at_end.callback(thread.join)
            at_end.callback(thread.over.set)

        def begin() -> None:
            for copy in copies:
                scenario.followers.append(Follower(url, copy))
                at_end.callback(scenario.followers[-1].stop)

        def move() -> None:
            (directory / "old").rename(directory / "moved")

        scenario.step("first copy", begin)
        sentry.complete = True
        for revision in ("two", "three", "one"):
            switch = functools.partial(git, directory, "checkout", "-q", revision)
            scenario.step(f"`git checkout {revision}`", switch)
        size = len(found(directory / "old"))
        with contextlib.ExitStack() as reading:
            readers = [reading.enter_context(NameReader(copy / "old", copy / "moved")) for copy in copies]
            if fetched := scenario.step(f"a directory of {size:,} files renamed", move):
                wrong.append(f"{fetched} files were fetched for a rename")
        if (fewest := min(reader.fewest for reader in readers)) < size:
            wrong.append(f"during a rename, a reader saw {fewest:,} of {size:,} names")
        scenario.step("10 lines a second", lambda: append(directory, copies, options.seconds, wrong))
        scenario.step("unmounted, a file changed, mounted", lambda: away(disk, copies, log, wrong))
    print("", *scenario.notes, sep="\n")
    print(f"{differ.runs} runs of diff -r; {sentry.looks} looks at all files; load {os.getloadavg()[0]:.1f}")
    return [*wrong, *differ.wrong, *sorted(sentry.wrong)]


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="for which the log grows (10)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        wrong = play(Path(place).resolve(), options)
    for line in wrong[:10]:
        print(line)
    print(
        f"{len(wrong)} things were lost, incomplete or deleted" if wrong else "nothing was lost, incomplete or deleted"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted must not stay
    sys.exit(main())
