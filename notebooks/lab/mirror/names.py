"""What a mirror calls things: the paths that it may write to, and the version of a file that it knows.

Windows and macOS ignore case: two paths that differ by it alone are one file there, whichever was applied last.
"""

import os
import re
from typing import NamedTuple

from servers.feed import check_path

PRIVATE = ".mirror"
LONGEST_PART, LONGEST_PATH = 255, 4096  # bytes; NAME_MAX and PATH_MAX of Linux, and no other system holds more
FORBIDDEN_ON_WINDOWS = re.compile(
    r'.*[<>:"\\|?*\x00-\x1f]|.*[. ]$|(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?$', re.IGNORECASE | re.DOTALL
)


class UnsafePath(ValueError):
    """A path that a mirror must not write to, whoever asks for it."""


class Version(NamedTuple):
    """What a file holds: `size` in bytes, and its SHA-256 in hexadecimal; and of what goes with it, None if not known:

    `mtime`, when it was last changed, in Unix time (s), and whether its owner may run it.
    """

    size: int
    sha256: str
    mtime: float | None = None
    executable: bool | None = None

    def is_met_by(self, other: "Version") -> bool:
        """Whether a file that is `other` is what this one asks for."""
        return self.sha256 == other.sha256 and self.suits(other)

    def suits(self, other: "Version") -> bool:
        """Whether what goes with the bytes is what this one asks for."""
        return self.mtime in (None, other.mtime) and self.executable in (None, other.executable)


def check_name(path: str, room: int = LONGEST_PATH) -> None:
    """Raise UnsafePath for what lies outside the copy, among the mirror's own files, or fits no file system.

    `room` is how many bytes it may have where it is to be written.
    """
    parts = path.split("/")
    if len(path) > LONGEST_PATH or max(map(_bytes, parts)) > LONGEST_PART or _bytes(path) > LONGEST_PATH:
        raise UnsafePath(f"a name has {LONGEST_PART} bytes at most, a path {LONGEST_PATH}")
    if _bytes(path) > room:
        raise UnsafePath("this disk holds no such name (File name too long)")
    try:
        check_path(path)
    except ValueError as error:
        raise UnsafePath(str(error)) from None
    first = "".join(filter(str.isprintable, parts[0]))  # some systems ignore case, and zero-width letters
    if first.casefold().rstrip(". ") == PRIVATE:
        raise UnsafePath(f"{PRIVATE} is the mirror's own")
    if os.name == "nt" and any(map(FORBIDDEN_ON_WINDOWS.match, parts)):
        raise UnsafePath("a name that Windows reads differently")


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
