"""What may have changed in a tree: names that the operating system tells, gathered by one thread, taken by another.

    inotify (Linux) │ watchfiles (elsewhere) ─▶ Hints ─▶ wait(): names, and whether some were lost

They are no more than hints: unordered, merged, late. A directory of Linux is watched by itself, by what it is and not
by its name, and the moment it is found: that costs what is new, and a link leads to nothing that is watched.
"""

import ctypes
import errno
import os
import select
import struct
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from servers.places import Place
from servers.tree import Tree

GATHER = 0.01  # seconds after the first hint in which others may join it
AGAIN = 30.0  # seconds until a library that has failed is asked again
MOST = 100_000  # hints that wait; more of them are lost
LIMITS = Path("/proc/sys/fs/inotify")

EVENT = struct.Struct("iIII")  # inotify(7): watch, mask, cookie, length of the name
IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = (
    0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200, 0x400, 0x800,
)  # fmt: skip
IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR, IN_EXCL_UNLINK = 0x4000, 0x8000, 0x1000000, 0x4000000
INSIDE = IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE


class Hints:
    """Those of a tree. `blind` says why the system gives none, or not all; who looks has to look by the clock then."""

    def __init__(self) -> None:
        self.blind = ""
        self._come = threading.Condition()
        self._names: dict[str, None] = {}
        self._lost = self._woken = self._closed = False

    def wait(self, seconds: float) -> tuple[list[str], bool]:
        """The names hinted at, and whether others were lost: once there are some, or after so long, or a `wake`."""
        with self._come:
            self._come.wait_for(lambda: self._any() or self._woken, max(seconds, 0))
            some = self._any()
        if some:
            time.sleep(GATHER)
        with self._come:
            names, lost = self._names, self._lost
            self._names, self._lost, self._woken = {}, False, False
            return self._told(list(names)), lost

    def post(self, names: Iterable[str] = (), *, lost: bool = False) -> None:
        """From any thread: these may have changed."""
        with self._come:
            self._names.update(dict.fromkeys(names))
            self._lost |= lost
            if len(self._names) > MOST:
                self._names, self._lost = {}, True
            self._come.notify_all()

    def wake(self) -> None:
        """From any thread: end a `wait`."""
        with self._come:
            self._woken = True
            self._come.notify_all()

    def listen(self, prefix: str, place: Place) -> None:
        """Hint at what happens in this directory from now on."""

    def forget(self, prefix: str) -> None:
        """No directory has this name any more."""

    def anew(self, *, lost: bool = False) -> None:
        """Everything is looked at next: try what could not be watched once more; all of it, if hints were lost."""

    def close(self) -> None:
        """End what hears the system."""

    def _any(self) -> bool:
        return bool(self._names) or self._lost

    def _told(self, names: list[str]) -> list[str]:
        return names


class Inotify(Hints):
    """Linux's own, directory by directory (inotify(7))."""

    def __init__(self) -> None:
        super().__init__()
        self._c = ctypes.CDLL(None, use_errno=True)
        self._file = -1
        self._heard: dict[tuple[int, bytes, bool], None] = {}  # watch, name, whether the watch is over
        self._watches: dict[str, tuple[int, tuple[int, int] | None]] = {}  # by prefix: watch, and what is watched
        self._prefixes: dict[int, str] = {}
        self._full = False
        self._end = self._stop = -1
        self._thread: threading.Thread | None = None
        self.anew()

    def anew(self, *, lost: bool = False) -> None:
        self._full, self.blind = False, ""
        if lost:  # that a watch is over may be among what was lost: the same inode can be another directory
            self._watches = {prefix: (watch, None) for prefix, (watch, _) in self._watches.items()}
        if self._file >= 0:
            return
        file = self._c.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if file < 0:
            self._fail(ctypes.get_errno())
            return
        try:
            self._end, self._stop = os.pipe()
        except OSError as error:
            os.close(file)
            self._fail(error.errno or 0)
            return
        self._file = file
        self._thread = threading.Thread(target=self._hear, name="inotify", daemon=True)
        self._thread.start()

    def listen(self, prefix: str, place: Place) -> None:
        known = self._watches.get(prefix)
        if self._full or self._file < 0 or (known and known[1] == place.place):
            return
        mask = INSIDE | IN_ONLYDIR | IN_EXCL_UNLINK | (0 if prefix else IN_DELETE_SELF | IN_MOVE_SELF)
        watch = self._c.inotify_add_watch(self._file, f"/proc/self/fd/{place.at}".encode(), mask)
        if watch < 0:
            self._fail(ctypes.get_errno())
            return
        if known and known[0] != watch:
            self.forget(prefix)
        if (before := self._prefixes.get(watch)) is not None and before != prefix:
            self._watches.pop(before, None)  # it has been renamed
        self._watches[prefix] = watch, place.place
        self._prefixes[watch] = prefix

    def forget(self, prefix: str) -> None:
        watch, _ = self._watches.pop(prefix, (-1, None))
        if self._prefixes.get(watch) == prefix:
            del self._prefixes[watch]
            self._c.inotify_rm_watch(self._file, watch)

    def close(self) -> None:
        if self._thread:
            os.close(self._stop)
            self._thread.join()
            os.close(self._file)
            os.close(self._end)

    def _fail(self, code: int) -> None:
        self._full = True
        limit = {errno.ENOSPC: "max_user_watches", errno.EMFILE: "max_user_instances"}.get(code)
        self.blind = os.strerror(code)
        if limit:
            most = (LIMITS / limit).read_text().strip() if (LIMITS / limit).exists() else "unknown"
            self.blind = f"inotify has no more to give: raise fs.inotify.{limit}, now {most}, with sysctl"
            if code == errno.EMFILE:
                self.blind += ", or the process's limit of open files"

    def _hear(self) -> None:
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while True:
            if any(file == self._end for file, _ in poll.poll()):
                return
            try:
                data = os.read(self._file, 2**16)
            except BlockingIOError:
                continue
            with self._come:
                at = 0
                while at < len(data):
                    watch, mask, _, length = EVENT.unpack_from(data, at)
                    name = data[at + EVENT.size : at + EVENT.size + length].rstrip(b"\0")
                    at += EVENT.size + length
                    if mask & IN_Q_OVERFLOW:
                        self._lost = True
                    else:
                        self._heard[watch, name, bool(mask & IN_IGNORED)] = None
                if len(self._heard) > MOST:
                    self._heard, self._lost = {}, True
                self._come.notify_all()
            time.sleep(GATHER / 2)  # a file that is written to without a pause gives thousands of hints a second

    def _any(self) -> bool:
        return bool(self._heard) or super()._any()

    def _told(self, names: list[str]) -> list[str]:
        """The names of what was heard, as its directories are called by now."""
        heard, self._heard = self._heard, {}
        told = dict.fromkeys(names)
        for watch, name, over in heard:
            prefix = self._prefixes.get(watch)
            if prefix is None:
                continue
            if over:
                del self._prefixes[watch]
                self._watches.pop(prefix, None)
            if name:
                told[prefix + os.fsdecode(name)] = None
            elif prefix:
                told[prefix[:-1]] = None
            else:
                told[""] = None
        return list(told)


class Watchfiles(Hints):
    """Any system's, of the whole tree at once; not for Linux, where that follows links out of the tree."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self.directory = directory
        self._place: tuple[int, int] | None = None
        self._again_at = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def listen(self, prefix: str, place: Place) -> None:
        heard = self._thread is not None and self._thread.is_alive() and self._place == place.place
        if prefix or heard or time.monotonic() < self._again_at:
            return
        self.close()
        self._place, self._over, self.blind = place.place, threading.Event(), ""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._hear, args=(self._over, ready), name="watchfiles", daemon=True)
        self._thread.start()
        ready.wait(5)

    def close(self) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()

    def _hear(self, over: threading.Event, ready: threading.Event) -> None:
        try:
            import watchfiles  # here: Linux does without, and a browser's Python has none

            heard = watchfiles.watch(
                self.directory, watch_filter=None, debounce=50, step=10, stop_event=over, rust_timeout=100,
                yield_on_timeout=True, raise_interrupt=False,
            )  # fmt: skip
            for changes in heard:
                ready.set()
                names = [os.path.relpath(path, self.directory).replace(os.sep, "/") for _, path in changes]
                if names:
                    self.post("" if name == "." else name for name in names)
        except Exception as error:  # of any kind: a watch that ends leaves a server that has no news, and looks well
            self.blind, self._again_at = str(error) or repr(error), time.monotonic() + AGAIN
            self.post(lost=True)
        finally:
            ready.set()


def hints_of(tree: Tree) -> Hints:
    """What this system gives."""
    return Inotify() if sys.platform == "linux" else Watchfiles(os.path.realpath(tree.directory))
