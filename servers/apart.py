"""Large files, hashed in a thread of their own: several in turn, so that a huge one keeps nobody waiting.

    names ─▶ Apart.add() ─▶ due ─▶ turns, STEPS pieces each: hashing, or verifying ─▶ results() ─▶ Tree.hashed

One that is written to all the time is read every PACE seconds at most, and all of it for a tenth of the time at most.
Of one that grows what has come is read, and announced; that it has only grown is verified beside that, now and then.
"""

import errno
import math
import threading
import time
from collections.abc import Iterable, Iterator

from servers.hashing import FRESH, Abandoned, File, Hashing
from servers.hints import Hints

SETTLE = 1.2e-9 * FRESH  # seconds that a large file has to be left alone before it is hashed
PACE = 0.5  # seconds from one hashing of a large file to the next, at least
REST = 9  # times as long as reading all of it took, until all of it is read again
STEPS = 32  # pieces of a large file that are read before it is another's turn
AT_ONCE = 8  # large files that take turns


class Turn:
    """A large file being read: to know what it is, or only to verify that it has only grown."""

    __slots__ = ("name", "steps", "took", "verifies", "whole")

    def __init__(
        self, name: str, steps: Iterator[File | bool | None], *, whole: bool = False, verifies: bool = False
    ) -> None:
        self.name, self.steps, self.whole, self.verifies = name, steps, whole, verifies
        self.took = 0.0

    def go_on(self) -> File | OSError | bool | None:
        """Read on; None when there is more to read. Raises Abandoned."""
        began = time.monotonic()
        try:
            for _ in range(STEPS):
                if (result := next(self.steps)) is not None:
                    return result
        except StopIteration:
            return OSError(errno.EBUSY, "it changes while it is read")
        except OSError as error:
            return error
        finally:
            self.took += time.monotonic() - began
        return None


class Apart:
    """Who hashes the large files of a tree, and says so by a hint."""

    def __init__(self, tree: Hashing, hints: Hints) -> None:
        self.tree, self.hints = tree, hints
        self._change = threading.Condition()
        self._due: dict[str, float] = {}
        self._rest: dict[str, float] = {}  # until when a file is left alone
        self._rest_whole: dict[str, float] = {}  # until when it is unless what has come since is enough
        self._results: list[tuple[str, File | OSError]] = []
        self._closed = False
        self._running: list[Turn] = []
        self._thread = threading.Thread(target=self._run, name=f"hashes of {tree.directory}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; what is being hashed is given up: the tree is abandoned."""
        with self._change:
            self._closed = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    def add(self, names: Iterable[str]) -> None:
        """These are to be hashed, once they have been left alone for a moment, or a while has passed."""
        soon = time.monotonic() + SETTLE
        with self._change:
            for name in names:
                self._add(name, max(soon, self._rest.get(name, 0.0)))
            self._change.notify()

    def results(self) -> list[tuple[str, File | OSError]]:
        """What has become known since this was asked last."""
        with self._change:
            results, self._results = self._results, []
        return results

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._closed and not self._running and not self._ready():
                    at = min(self._due.values(), default=math.inf)
                    self._change.wait(None if at == math.inf else max(at - time.monotonic(), 0.0))
                if self._closed:
                    return
                ready = self._ready()[: max(AT_ONCE - len(self._running), 0)]
                for name in ready:
                    del self._due[name]
            for name in ready:
                self._begin(name)
            if not self._running:
                continue
            turn = self._running.pop(0)
            try:
                result = turn.go_on()
            except Abandoned:
                return
            if result is None:
                self._running.append(turn)
            elif turn.verifies:
                self._verified(turn, result)
            elif not isinstance(result, bool):
                self._done(turn, result)

    def _begin(self, name: str) -> None:
        """Read what has come since, or all of it if it is time."""
        try:
            whole = not self.tree.goes_on(name)
        except OSError:
            whole = True  # reading it will say why not
        if whole and (until := self._rest_whole.get(name, 0.0)) > time.monotonic():
            with self._change:
                self._add(name, until)
        else:
            self._running.append(Turn(name, self.tree.hashing(name), whole=whole))

    def _done(self, turn: Turn, result: File | OSError) -> None:
        name, now = turn.name, time.monotonic()
        with self._change:
            rest = self._rest[name] = now + max(PACE, 0 if turn.whole else REST * turn.took)
            if turn.whole:
                self._rest_whole[name] = now + REST * turn.took
            if name in self._due:
                self._due[name] = max(self._due[name], rest)
            elif isinstance(result, File) and not result.settled:
                self._due[name] = max(self.tree.sure_at(name), rest)
            elif isinstance(result, OSError) and result.errno == errno.EBUSY:
                self._due[name] = rest
            for rests in (self._rest, self._rest_whole):
                for each in [each for each, until in rests.items() if until < now - 60]:
                    del rests[each]
            self._results.append((name, result))
        self.hints.wake()
        verified = turn.whole or self.tree.sure_at(name) > now
        if not verified and not any(each.name == name for each in self._running):
            self._running.append(Turn(name, self.tree.verifying(name), verifies=True))

    def _verified(self, turn: Turn, result: File | OSError | bool) -> None:
        """Have all of it hashed at once if it has not only grown; if it is gone, its own hint says so."""
        if result is False:
            with self._change:
                self._rest_whole.pop(turn.name, None)
                self._add(turn.name, time.monotonic())

    def _add(self, name: str, at: float) -> None:
        self._due[name] = min(at, self._due.get(name, at))

    def _ready(self) -> list[str]:
        now, running = time.monotonic(), {turn.name for turn in self._running if not turn.verifies}
        return [name for name, at in self._due.items() if at <= now and name not in running]
