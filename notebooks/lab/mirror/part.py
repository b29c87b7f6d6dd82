"""A file being written where nobody looks: its bytes, their hash so far, and what goes with them.

Part ◀─ write(data), begin(digest), anew() ─▶ close(version) ─▶ Copy.place renames it to where it belongs

One can be an earlier state of a file that has grown, gone on with: only if nobody else has it open any more.
"""

import contextlib
import errno
import hashlib
import os
import signal
import stat
import sys
from typing import BinaryIO, NamedTuple

from lab.mirror.names import Version
from lab.mirror.places import Directory
from servers.hashing import CHUNK
from servers.places import identity

WRITE = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
CREATE = WRITE | os.O_CREAT | os.O_EXCL


class Earlier(NamedTuple):
    """A state that a file had before: a name out of sight, its stat there, and its digest."""

    name: str
    stat: tuple[int, ...]
    digest: "hashlib._Hash"


class Part:
    """A file of another name. `size` and `sha256` are those of the bytes written so far."""

    def __init__(self, directory: Directory, name: str, flags: int = CREATE) -> None:
        """Raises OSError."""
        self.directory, self.name, self.size = directory, name, 0
        self.kept = 0  # of its bytes, those that it had before any were fetched
        self.grows = False  # whether these are those of a file that may have grown
        self.digest = hashlib.sha256()
        self._file = directory.open(name, flags)

    @classmethod
    def again(cls, directory: Directory, earlier: Earlier) -> "Part":
        """A file that is there already. Raises OSError, also if it is not what it was, or anybody else has it."""
        part = cls(directory, earlier.name, WRITE)
        try:
            status = os.fstat(part._file)
            if identity(status) != earlier.stat or status.st_nlink > 1 or not is_alone(part._file):
                raise OSError(errno.ETXTBSY, "it is not the mirror's alone")
        except OSError:
            part.close()
            raise
        part.size, part.digest = os.lseek(part._file, 0, os.SEEK_END), earlier.digest
        return part

    @property
    def sha256(self) -> str:
        """In hexadecimal."""
        return self.digest.hexdigest()

    @property
    def closed(self) -> bool:
        """Whether it has been written out, its time and executable bit included."""
        return self._file < 0

    def write(self, data: bytes | memoryview) -> None:
        """Add to it. Raises OSError."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left) :]
        self.digest.update(data)
        self.size += len(data)

    def fill(self, data: bytes | memoryview, version: Version) -> None:
        """Have it hold these bytes, which are known to be that version, and close it. Raises OSError."""
        while data:
            data = data[os.write(self._file, data) :]
        self.close(version)

    def anew(self) -> None:
        """Begin again. Raises OSError."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self.size, self.kept, self.grows, self.digest = 0, 0, False, hashlib.sha256()

    def begin(self, file: BinaryIO, size: int, digest: "hashlib._Hash") -> None:
        """Begin with so many bytes of another file, whose digest is known. Raises OSError."""
        self.anew()
        file.seek(0)
        while self.size < size:
            moved = self._moved(file, min(size - self.size, CHUNK * 64))
            if not moved:
                raise OSError(f"{size} bytes were there, and only {self.size} are")
            self.size += moved
        self.digest = digest.copy()

    def _moved(self, file: BinaryIO, most: int) -> int:
        if hasattr(os, "copy_file_range"):
            with contextlib.suppress(OSError):  # from one file system to another, or on one that has no such thing
                return os.copy_file_range(file.fileno(), self._file, most)
        return os.write(self._file, file.read(min(most, CHUNK)))

    def close(self, version: Version | None = None) -> None:
        """Write out what is left in memory, and what goes with it. Raises OSError."""
        file, self._file = self._file, -1
        if file >= 0:
            try:
                if version:
                    dress(file, version)
            finally:
                os.close(file)


def is_alone(file: int) -> bool:
    """Whether nobody else has an open file open, as far as the system can tell: the rule for leases (fcntl(2))."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # who opens it in this instant sends that: it is ignored
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def dress(file: int, version: Version) -> None:
    """Give an open file the time and the executable bit of a version, as far as they are known. Raises OSError."""
    if version.executable is not None and hasattr(os, "fchmod"):
        mode = stat.S_IMODE(os.fstat(file).st_mode)
        right = mode | (mode & 0o444) >> 2 if version.executable else mode & ~0o111
        if right != mode:
            os.fchmod(file, right)
    if version.mtime is not None and os.utime in os.supports_fd:
        moment = round(version.mtime * 1e9)
        os.utime(file, ns=(moment, moment))
