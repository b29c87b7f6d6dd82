"""Convergence at size, by hand: python tests/benchmarks/convergence.py [--files N] [--edits N] [--kills N] [--seed N].

    DIR ── python -m servers file-updates (killed) ── Wire (cut, slowed) ── 2 x python -m lab.mirror (killed)

A seeded plan changes DIR in every way there is: bursts, appends, directory renames, switches to another revision and
back, odd names, files that become directories, DIR moved away and back. Processes are killed and the link is troubled
meanwhile, at random. At the end all trees are to be the same; times and bytes are printed. Exit
status 1 if they are not.
"""

import argparse
import asyncio
import contextlib
import hashlib
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from lab.proxies.wire import Wire

ODD = ("a space", "quote'\"", "line\nbreak", "back\\slash", "ünïcode", "%41", "-dash", "?#&", "é" * 100, "日本")
PATIENCE = 600.0  # s
SERVED = "file-updates at "


def tree(directory: Path) -> dict[str, str]:
    """Path to SHA-256 of every file."""
    found = {}
    for here, below, names in os.walk(directory):
        if here == str(directory) and ".mirror" in below:
            below.remove(".mirror")
        for name in names:
            with contextlib.suppress(OSError), Path(here, name).open("rb") as file:
                found[f"{here}/{name}"[len(str(directory)) + 1 :]] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


class Editor:
    """Changes a directory according to a seed."""

    def __init__(self, directory: Path, files: int, rng: random.Random) -> None:
        self.directory, self.rng, self.done = directory, rng, Counter[str]()
        self.born = 0
        for _ in range(files):
            self.create()
        self.revision = directory.with_name("revision")
        shutil.copytree(directory / "d0", self.revision)

    def some(self) -> Path:
        """A file that is there."""
        while True:
            here = self.directory / f"d{self.rng.randrange(40)}"
            names = [name for name in here.rglob("*") if name.is_file()] if here.is_dir() else []
            if names:
                return self.rng.choice(names)
            self.create()

    def create(self) -> None:
        self.born += 1
        name = self.rng.choice(ODD) if self.rng.random() < 0.01 else "file"
        path = self.directory / f"d{self.rng.randrange(40)}/e{self.rng.randrange(10)}/{name}-{self.born}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.rng.randbytes(self.rng.choice([0, 100, 1000, 5000, 20_000])))
        path.chmod(self.rng.choice([0o644, 0o755]))

    def modify(self) -> None:
        self.some().write_bytes(self.rng.randbytes(2000))

    def append(self) -> None:
        with self.some().open("ab") as file:
            file.write(b"another line\n" * self.rng.randrange(1, 5000))

    def delete(self) -> None:
        self.some().unlink()

    def rename(self) -> None:
        name = self.some()
        name.rename(name.with_name(f"renamed-{self.rng.random()}"))

    def burst(self) -> None:
        for _ in range(100):
            self.create()

    def move(self) -> None:
        """Rename a directory, and back."""
        here, there = self.directory / f"d{self.rng.randrange(40)}", self.directory / f"moved-{self.rng.random()}"
        if here.is_dir():
            here.rename(there)
            if self.rng.random() < 0.5:
                there.rename(here)

    def nest(self) -> None:
        """A file becomes a directory."""
        name = self.some()
        name.unlink()
        name.mkdir()
        (name / "nested").write_text("nested")

    def switch(self) -> None:
        """Exchange a directory for another revision of it, as a checkout does."""
        here, aside = self.directory / "d0", self.revision.with_name("aside")
        if here.is_dir():
            here.rename(aside)
            self.revision.rename(here)
            aside.rename(self.revision)

    def vanish(self) -> None:
        """All of it is away for a moment."""
        aside = self.directory.with_name("unmounted")
        self.directory.rename(aside)
        time.sleep(0.5)
        aside.rename(self.directory)

    def edit(self) -> None:
        """One of these."""
        kinds = {self.create: 20, self.modify: 25, self.append: 15, self.delete: 12, self.rename: 15, self.burst: 2,
                 self.move: 3, self.nest: 3, self.switch: 3, self.vanish: 1}  # fmt: skip
        kind = self.rng.choices(list(kinds), list(kinds.values()))[0]
        kind()
        self.done[kind.__name__] += 1


class Program:
    """A command that is killed and started again."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log, self.arguments = log, arguments
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Run it; return its first line if it is a server."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *self.arguments, stderr=log, stdout=asyncio.subprocess.PIPE
            )
        assert self.process.stdout
        if self.arguments[0] == "servers":
            line = (await self.process.stdout.readline()).decode()
            assert line.startswith(SERVED), line
            return line.removeprefix(SERVED).split()[0]
        self.reading = asyncio.create_task(self.process.stdout.read())
        return ""

    async def end(self, sign: int) -> None:
        """Send it a signal, and wait."""
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(sign)
        await self.process.wait()


async def live_through(place: Path, options: argparse.Namespace) -> bool:
    """Do all of it; say whether the trees are the same."""
    rng, begin = random.Random(options.seed), time.monotonic()
    directory = place / "dir"
    editor = await asyncio.to_thread(Editor, directory, options.files, rng)
    server = Program(place / "server.log", "servers", "file-updates", "--watch", str(directory), "--port", "0")
    url = await server.start()
    server.arguments = (*server.arguments[:-1], url.rpartition(":")[2])
    copies = [place / "copy-0", place / "copy-1"]
    with Wire(url) as wire:
        common = ("--longest-pause", "2", "--timeout", "5", "--max-delete", "1000000000")
        mirrors = [Program(place / f"{copy.name}.log", "lab.mirror", wire.url, str(copy), *common) for copy in copies]
        try:
            for mirror in mirrors:
                await mirror.start()
            first = await converged(directory, copies)
            print(f"first copies of {options.files:,} files: {first:.1f} s, {wire.bytes['down']:,} bytes", flush=True)
            troubles = sorted(rng.sample(range(options.edits), options.kills))
            for number in range(options.edits):
                await asyncio.to_thread(editor.edit)
                if troubles and number == troubles[0]:
                    troubles.pop(0)
                    match rng.choice(["server", "mirror", "mirror", "cut", "cut after", "slow"]):
                        case "server":
                            await server.end(signal.SIGKILL)
                            await server.start()
                        case "mirror":
                            mirror = rng.choice(mirrors)
                            await mirror.end(signal.SIGKILL)
                            await mirror.start()
                        case "cut":
                            wire.cut()
                        case "cut after":
                            wire.cut_after(50_000)
                        case "slow":
                            wire.rate = rng.choice([math.inf, 2e6])
                await asyncio.sleep(rng.choice([0, 0, 0, 0.1]))
            wire.rate = math.inf
            last = await converged(directory, copies)
            print(f"{options.edits} edits {dict(editor.done)}, {options.kills} troubles: the same {last:.1f} s later")
        except TimeoutError:
            return False
        finally:
            for program in (*mirrors, server):
                await program.end(signal.SIGTERM)
        print(f"{wire.bytes['down']:,} bytes down, {wire.bytes['up']:,} up, {time.monotonic() - begin:.0f} s in all")
    return True


async def converged(directory: Path, copies: list[Path]) -> float:
    """Wait until all are the same; how long that took (s). Raises TimeoutError, after a line that says what is not."""
    begin = time.monotonic()
    while True:
        right, *others = [await asyncio.to_thread(tree, name) for name in (directory, *copies)]
        wrong = [sorted(set(right.items()) ^ set(other.items())) for other in others]
        if not any(wrong):
            return time.monotonic() - begin
        if time.monotonic() - begin > PATIENCE:
            print(f"not the same: {[found[:5] for found in wrong]}")
            raise TimeoutError
        await asyncio.sleep(0.5)


def main() -> int:
    """Run it."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--files", 20_000), ("--edits", 2000), ("--kills", 50), ("--seed", 1)):
        p.add_argument(name, type=int, default=default)
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as place:
        same = asyncio.run(live_through(Path(place).resolve(), options))
        if not same:
            for log in Path(place).glob("*.log"):
                print(log.name, log.read_text()[-2000:])
        return int(not same)


if __name__ == "__main__":
    sys.exit(main())
