"""What a server says there should be, and what is known to be there; both true after any crash.

    what the server says ─▶ COPY/.mirror/state ─▶ wanted ──┐
                                                           ├─▶ differing()
    what stands there, looked at when it is opened ─▶ present

The state is a journal. A line says what one update said, its cursor included, and is written in one piece *before*
the update is applied: cursor and expectation cannot come apart, and what was not yet applied when the process was
killed is seen to differ when the copy is opened again. So nothing needs to be flushed file by file: whatever a crash
leaves, each file is compared with what is wanted, by its stat and, if that has changed, by its hash. What is known to
be there is written down many lines at a time: one that is missing costs a look at the file, no more.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

from lab.mirror.journal import Journal, Row
from lab.mirror.names import Version, check_name
from servers.places import identity

FEW = 8  # files with the same bytes that are looked at
NOTES = 500  # lines about what is there, at most, before they are written
SLACK = 1000  # superseded lines in the journal before it is written anew, besides as many as there are files

Stat = tuple[int, ...]  # what differs whenever a file's bytes may: `servers.tree.identity`


class State:
    """What a copy should be and is, as far as its journal and a look at its files say.

    `cursor` is where it stands in the server's log, None before the first listing. `wanted` maps paths to the version
    that the server named last, None for one that must go; `present` to the version that is known to be there. `source`
    is what the server calls itself, if it does, and `url` where it was.
    """

    def __init__(self, top: str, journal: Journal, *, doubt: bool = False, look: bool = False) -> None:
        """Read the journal, and have it ready for more, unless only to `look`. Raises OSError.

        In `doubt`, no file is believed to be what it was.
        """
        self.cursor: str | None = None
        self.source: str | None = None
        self.url: str | None = None
        self.wanted: dict[str, Version | None] = {}
        self.present: dict[str, Version] = {}
        self._stats: dict[str, Stat] = {}  # of what is present
        self._holders: dict[str, dict[str, None]] = {}  # SHA-256 to the paths that are present with it
        self._journal = journal
        self._notes: list[Row] = []
        self._look = look
        self._load(top, doubt=doubt)
        if not look:
            journal.open()
            self._append({})  # ends a line that was cut off

    @property
    def unsaved(self) -> OSError | None:
        """Why the state could not be written, until it can be."""
        return self._journal.unsaved

    def close(self) -> None:
        """Let go of the journal."""
        self._journal.close()

    def flush(self) -> None:
        """Write down what is known."""
        if self._notes:
            self._append()

    # What the server says

    def expect(self, path: str, version: Version | None, cursor: str) -> bool:
        """Take note of an update; False when there is nothing to do, since the path was never the mirror's."""
        if version is None and path not in self.wanted:
            self.pass_over(cursor)
            return False
        rows = [{"cursor": cursor} | _row(path, version)]
        self.cursor = cursor
        if version is not None and path not in self.wanted:
            above = [path[:n] for n, character in enumerate(path) if character == "/"]
            for file in (file for file in above if self.wanted.get(file)):  # it is to be a directory
                self.wanted[file] = None
                rows.append(_row(file, None))
        self.wanted[path] = version
        self._append(*rows)
        return True

    def give_way(self, path: str) -> list[str]:
        """Have all go that is present below a path, which is to be a file; return that."""
        below = [other for other in self.present if other.startswith(f"{path}/")]
        for other in below:
            self.wanted[other] = None
        self._append(*(_row(other, None) for other in below))
        return below

    def pass_over(self, cursor: str) -> None:
        """Take note that the log is read up to here."""
        self.cursor = cursor
        self._append({"cursor": cursor})

    def expect_all(
        self, files: Mapping[str, Version], cursor: str, source: str | None = None, url: str | None = None
    ) -> None:
        """Take note of a listing: `files` is all there is at `cursor`."""
        self.source, self.url = source or self.source, url or self.url
        gone: dict[str, Version | None] = {path: None for path in self.wanted if path not in files}
        self.wanted, self.cursor = {**gone, **files}, cursor
        if not self._look:
            self._journal.rewrite(self._rows())

    def differing(self) -> list[str]:
        """The paths where something is to be done, deletions last: what goes may be what is missing elsewhere."""
        differing = [path for path in self.wanted if not self.is_right(path)]
        return sorted(differing, key=lambda path: (self.wanted[path] is None, path))

    def losses(self) -> int:
        """How many files there are whose bytes will be nowhere when all is as it is wanted."""
        kept = {version.sha256 for version in self.wanted.values() if version}
        present = self.present.items()
        return sum(self.wanted.get(path, ...) is None and version.sha256 not in kept for path, version in present)

    # What stands there

    def is_right(self, path: str) -> bool:
        """Whether what is wanted there is known to be there."""
        wanted, present = self.wanted.get(path), self.present.get(path)
        return wanted is not None and present is not None and wanted.is_met_by(present)

    def holders(self, sha256: str) -> list[str]:
        """The paths of some files that are present with these bytes, those first that are to go."""
        some = itertools.islice(self._holders.get(sha256, ()), FEW)
        return sorted(some, key=lambda path: self.wanted.get(path) is not None)

    def stat(self, path: str) -> Stat:
        """What is known of the file that is present there."""
        return self._stats[path]

    def note(self, path: str, version: Version, status: Stat) -> None:
        """Take that version, of a file with that stat, for present."""
        self.forget(path)
        self._remember(path, version, status)
        self._notes.append({"path": path, "sha256": version.sha256, "stat": status})
        if len(self._notes) >= NOTES:
            self.flush()

    def note_gone(self, path: str) -> None:
        """Take for gone what had to go."""
        self.forget(path)
        if self.wanted.get(path, ...) is None:
            del self.wanted[path]

    def disown(self, path: str) -> None:
        """Have nothing to do with a path any more."""
        self.forget(path)
        self.wanted.pop(path, None)

    def forget(self, path: str) -> None:
        """Take nothing for present there."""
        known = self.present.pop(path, None)
        self._stats.pop(path, None)
        if known:
            holders = self._holders[known.sha256]
            del holders[path]
            if not holders:
                del self._holders[known.sha256]

    def _remember(self, path: str, version: Version, status: Stat) -> None:
        self.present[path], self._stats[path] = version, status
        self._holders.setdefault(version.sha256, {})[path] = None

    # The journal

    def _load(self, top: str, *, doubt: bool) -> None:
        """Read the journal, and believe of it what a look at the files confirms."""
        stats: dict[str, Stat] = {}
        for row in self._journal.read():
            with contextlib.suppress(ValueError):  # a name that must not be written to
                replay(self, row, stats)
        for path, wanted in list(self.wanted.items()):
            try:
                found = identity(os.lstat(f"{top}/{path}"))
            except OSError:
                if wanted is None:
                    del self.wanted[path]
                continue
            if wanted is not None and stats.get(path) == found and not doubt:
                self._remember(path, wanted, found)

    def _append(self, *rows: Row) -> None:
        """Write lines, or everything anew when the last one failed or most of them are superseded."""
        notes, self._notes = self._notes, []
        if self.cursor is None or self._look:  # nothing is known before the first listing
            return
        if self._journal.unsaved or self._journal.lines > 2 * len(self.wanted) + SLACK:
            self._journal.rewrite(self._rows())
        else:
            self._journal.append(*notes, *rows)

    def _rows(self) -> Iterator[Row]:
        """The whole state."""
        yield {"cursor": self.cursor} | ({"source": self.source, "url": self.url} if self.url else {})
        for path, version in self.wanted.items():
            known = {"stat": self._stats[path]} if self.is_right(path) else {}
            yield _row(path, version) | known


def replay(state: State, row: Any, stats: dict[str, Stat]) -> None:
    """Take up what a line says. Raises ValueError for a name that must not be written to."""
    match row:
        case {"path": str(path), "size": int(size), "sha256": str(sha256)}:
            check_name(path)
            state.wanted[path] = Version(size, sha256, row.get("mtime"), row.get("executable"))
            stats.pop(path, None)
        case {"path": str(path), "size": None}:
            check_name(path)
            state.wanted[path] = None
    match row:
        case {"path": str(path), "sha256": str(sha256), "stat": list(status)}:
            wanted = state.wanted.get(path)
            if wanted is not None and wanted.sha256 == sha256:
                stats[path] = tuple(status)
    match row:
        case {"cursor": str(cursor)}:
            state.cursor = cursor
            state.source, state.url = row.get("source", state.source), row.get("url", state.url)


def _row(path: str, version: Version | None) -> Row:
    if version is None:
        return {"path": path, "size": None}
    return {"path": path} | {key: value for key, value in version._asdict().items() if value is not None}
