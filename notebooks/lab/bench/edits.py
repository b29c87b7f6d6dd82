"""A real directory that a seeded plan edits, and a reader that looks at its copies all the time.

    plan(300, seed=1) ─▶ Plan ─▶ Original.carry_out() ─▶ the directory, and what stood there at each moment
                                   copies ◀─ Reader (a thread) ─▶ Look, Look, ... ─▶ differing, never_whole

Every edit is made as a careful program makes it, beside and renamed into place: what a reader finds at a path is a
whole content, or nothing. So whatever a copy shows that the original never had is half of something.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from lab.bench.schedule import MOST_BYTES, MOST_EDITS
from servers.limits import check_finite, check_whole

Kind = Literal["create", "modify", "same size", "rename", "delete"]
Files = dict[str, str]  # paths to SHA-256

KINDS: dict[Kind, float] = {"create": 0.15, "modify": 0.45, "same size": 0.15, "rename": 0.12, "delete": 0.13}
BURST, WITHIN = 10, 0.05  # edits of one file in a row, and the seconds they take
SMALLEST = 20  # bytes of a file
FOLDERS = ("reports", "images", "notes", "notes/old")
LOOK_PAUSE = 0.005  # seconds from one copy to the next: a reader in this process must leave it some time


@dataclass(frozen=True, slots=True)
class FileEdit:
    """One edit, `at` seconds after the start; `to` is the new name of a file that is renamed."""

    at: float
    kind: Kind
    path: str
    content: bytes = b""
    to: str = ""


@dataclass(frozen=True)
class Plan:
    """The files at the start, and the edits in the order of their times, all within `seconds`."""

    files: Mapping[str, bytes]
    edits: Sequence[FileEdit]
    seconds: float

    def __repr__(self) -> str:
        kinds = ", ".join(f"{sum(edit.kind == kind for edit in self.edits)} {kind}" for kind in KINDS)
        return f"Plan({len(self.files)} files, {len(self.edits)} edits in {self.seconds:g} s: {kinds})"


def plan(
    edits: int, *, files: int = 50, seconds: float = 15.0, bursts: int = 6, size: int = 4000, seed: int = 1
) -> Plan:
    """`edits` edits at random moments, of which `bursts` times BURST hit one file in a row; sizes in bytes, to `size`.

    The number of files stays within a fifth of `files`. Raises ValueError for a plan that cannot be.
    """
    check_whole(edits=edits, most=MOST_EDITS)
    check_whole(files=files, least=1, most=MOST_EDITS)
    check_whole(bursts=bursts, most=edits // BURST)
    check_whole(size=size, least=SMALLEST, most=MOST_BYTES // (edits + files))
    check_finite(seconds=seconds, least=WITHIN)
    rng = random.Random(seed)

    def content(length: int = 0) -> bytes:
        return rng.randbytes(length or rng.randint(SMALLEST, size))

    names = (f"{rng.choice(FOLDERS)}/file-{n:03}.bin" for n in range(1, files + edits + 1))
    start = {next(names): content() for _ in range(files)}
    sizes = {path: len(text) for path, text in start.items()}
    done = list[FileEdit]()

    def edit(at: float, kind: Kind, path: str) -> None:
        match kind:
            case "create" | "modify" | "same size":
                text = content(sizes[path] if kind == "same size" else 0)
                done.append(FileEdit(at, kind, path, text))
                sizes[path] = len(text)
            case "rename":
                done.append(FileEdit(at, kind, path, to=next(names)))
                sizes[done[-1].to] = sizes.pop(path)
            case "delete":
                done.append(FileEdit(at, kind, path))
                del sizes[path]

    singles = edits - bursts * BURST
    moments = sorted((rng.uniform(0, seconds - WITHIN), n < bursts) for n in range(singles + bursts))
    for moment, burst in moments:
        at = max(moment, done[-1].at if done else 0.0)  # what falls into a burst comes after it
        path = rng.choice(sorted(sizes))
        if burst:
            for n in range(BURST):
                edit(at + WITHIN * n / BURST, "modify", path)
            continue
        [kind] = rng.choices(list(KINDS), list(KINDS.values()))
        if len(sizes) < 0.8 * files:
            kind = "create"
        elif len(sizes) > 1.2 * files:
            kind = "delete"
        if kind == "delete" and len(sizes) == 1:
            kind = "modify"  # the last one stays: there is always something to edit
        edit(at, kind, next(names) if kind == "create" else path)
    return Plan(start, tuple(done), seconds)


class Standing(NamedTuple):
    """What stands at a path from a moment (`time.perf_counter()`, s) on: a SHA-256, or None for nothing."""

    at: float
    path: str
    sha256: str | None


class Original:
    """A directory made of a plan's files, and what has stood in it since: `changes`, in order."""

    def __init__(self, directory: Path, files: Mapping[str, bytes]) -> None:
        """Write the files; the directory must be new, and a sibling of it is used for what is being written."""
        self.directory = directory
        self.beside = directory.with_name(f"{directory.name}.new")
        self.changes: list[Standing] = []
        directory.mkdir(parents=True)
        self.beside.mkdir()
        for path, content in files.items():
            self.write(path, content)

    async def carry_out(self, edits: Iterable[FileEdit]) -> None:
        """Make each edit at its time, counted from now; a late one at once."""
        start = time.perf_counter()
        for edit in edits:
            await asyncio.sleep(start + edit.at - time.perf_counter())
            self.make(edit)

    def make(self, edit: FileEdit) -> None:
        """Make one edit, now."""
        if edit.kind == "delete":
            self.delete(edit.path)
        elif edit.kind == "rename":
            self.rename(edit.path, edit.to)
        else:
            self.write(edit.path, edit.content)

    def write(self, path: str, content: bytes) -> None:
        """Write a file beside the directory, and rename it into its place: nobody ever sees a part of it."""
        target, part = self.directory / path, self.beside / "part"
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        self._stands(path, hashlib.sha256(content).hexdigest())
        part.replace(target)

    def delete(self, path: str) -> None:
        """Delete a file."""
        self._stands(path, None)
        (self.directory / path).unlink()

    def rename(self, path: str, to: str) -> None:
        """Give a file another name."""
        target = self.directory / to
        target.parent.mkdir(parents=True, exist_ok=True)
        sha256 = next(change.sha256 for change in reversed(self.changes) if change.path == path)
        self._stands(path, None)
        self._stands(to, sha256)
        (self.directory / path).rename(target)

    def _stands(self, path: str, sha256: str | None) -> None:
        """Say what is about to stand there: noted any later, a watcher could have seen it before its moment."""
        self.changes.append(Standing(time.perf_counter(), path, sha256))

    def at(self, moment: float) -> Files:
        """What stood in the directory at a moment (`time.perf_counter()`, s)."""
        files: Files = {}
        for change in self.changes[: bisect_right(self.changes, moment, key=lambda change: change.at)]:
            if change.sha256 is None:
                files.pop(change.path, None)
            else:
                files[change.path] = change.sha256
        return files


class Look(NamedTuple):
    """What a reader found in copy number `copy`, a moment after `at` (`time.perf_counter()`, s)."""

    at: float
    copy: int
    files: Files


def snapshot(directory: Path) -> Files:
    """The files below a directory and their hashes, as a reader finds them; names that begin with "." are left out."""
    found: Files = {}
    for here, below, names in os.walk(directory):
        below[:] = [name for name in below if not name.startswith(".")]
        for path in (Path(here, name) for name in names if not name.startswith(".")):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # gone between the listing and the look
                if path.is_file():
                    found[path.relative_to(directory).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(found.items()))


class _Beside(ABC):
    """A thread that does what `_run` says while a block runs, until it is `_enough`."""

    def __init__(self) -> None:
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    @abstractmethod
    def _run(self) -> None:
        """What the thread does."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._enough.set()
        self._thread.join()


class Reader(_Beside):
    """Looks at one copy after another while the block runs, in a thread of its own; what it saw is in `looks`."""

    def __init__(self, copies: Sequence[Path]) -> None:
        super().__init__()
        self.copies, self.looks = copies, list[Look]()

    def _run(self) -> None:
        while not self._enough.is_set():
            for number, copy in enumerate(self.copies):
                self.looks.append(Look(time.perf_counter(), number, snapshot(copy)))
                self._enough.wait(LOOK_PAUSE)


class NameReader(_Beside):
    """Lists the files in some directories, as often as it can, while the block runs, in a thread of its own.

    A file counts once, in whichever of them its name stands; they are listed in their order, so that of what moves on
    from one to a later one nothing is overlooked. `fewest` names were seen in a look; `looks` were made, `rate` per s.
    """

    def __init__(self, *directories: Path) -> None:
        super().__init__()
        self.directories, self.fewest, self.looks, self.rate = directories, 0, 0, 0.0

    def _run(self) -> None:
        begin = time.perf_counter()
        while not self.looks or not self._enough.is_set():
            seen = len({name for directory in self.directories for name in names_below(directory)})
            self.fewest = min(self.fewest, seen) if self.looks else seen
            self.looks += 1
            self.rate = self.looks / (time.perf_counter() - begin)


def names_below(directory: Path) -> Iterator[str]:
    """The paths, from there, of the files below a directory; none, if it is not there."""
    for here, _, names in os.walk(directory):
        for name in names:
            yield os.path.relpath(f"{here}/{name}", directory)


def differing(original: Original, looks: Iterable[Look]) -> list[tuple[float, int, int]]:
    """(moment, copy, number of paths at which the copy did not show what the original had then) for each look."""
    found = list[tuple[float, int, int]]()
    for look in looks:
        true = original.at(look.at)
        wrong = sum(true.get(path) != look.files.get(path) for path in true.keys() | look.files.keys())
        found.append((look.at, look.copy, wrong))
    return found


def never_whole(original: Original, looks: Iterable[Look]) -> set[tuple[str, str]]:
    """The paths, with a hash, where a reader saw what never stood there in the original: parts, and mixtures."""
    whole = {(change.path, change.sha256) for change in original.changes}
    return {seen for look in looks for seen in look.files.items() if seen not in whole}
