"""Many small files in one answer: a tar archive (POSIX.1-2001, pax), of which nothing is believed but bytes that fit.

    body ─▶ members(): path, bytes, header ─▶ unpack(): asked for, of that size, of that hash? ─▶ a Part each

An archive can name what it likes, link, and lie about sizes. Here a name is only looked up among those that were asked
for, whatever is not a regular file is passed over, and what was cut off ends it: the rest is asked for again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from lab.clients.answers import moment
from lab.mirror.names import LONGEST_PATH, Version
from lab.mirror.part import Part

TAR = "application/x-tar"
BLOCK = 512  # bytes
MOST_FILES, MOST_BYTES = 500, 2**22  # in one bundle
MOST_ASKED = 60_000  # bytes of the paths in a request for one, which is a body of 64 KiB at most
SMALL = 2**18  # bytes; a larger file travels alone
LONGEST_HEAD = 4 * BLOCK + 3 * LONGEST_PATH  # bytes of a member that are not its content
LONGEST_LENGTH = 20  # digits of that of a record, and a space
REGULAR, EXTENDED = b"0\0", b"x"  # types of members


class Member(NamedTuple):
    """A file in an archive; `mtime` in Unix time (s), None if it makes no sense."""

    path: str
    content: memoryview
    mtime: float | None
    executable: bool


def asked(path: str) -> bytes:
    """A path as a request for a bundle has it: JSON, each character as short as it can be."""
    return json.dumps(path, ensure_ascii=False).encode(errors="surrogatepass")


def room(sizes: Iterable[int]) -> int:
    """How many bytes an archive of files of these sizes (bytes) takes at most."""
    return 20 * BLOCK + sum(size + LONGEST_HEAD for size in sizes)


def members(archive: bytes) -> Iterator[Member]:
    """The regular files of an archive, as far as it goes and makes sense."""
    whole, at, extended = memoryview(archive), 0, dict[str, str]()
    while len(head := archive[at : at + BLOCK]) == BLOCK and head[257:262] == b"ustar":
        try:
            size = int(extended["size"]) if "size" in extended else _octal(head[124:136])
            content = whole[at + BLOCK : at + BLOCK + size]
            if size < 0 or len(content) < size:
                return
            at += BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
            kind = head[156:157]
            if kind == EXTENDED:
                extended = _records(bytes(content))
                continue
            if kind in REGULAR:
                above, name = _text(head[345:500]), _text(head[:100])
                path = extended.get("path") or (f"{above}/{name}" if above else name)
                mtime = moment(float(extended.get("mtime") or _octal(head[136:148])))
                yield Member(path, content, mtime, bool(_octal(head[100:108]) & 0o100))
            extended = {}
        except ValueError:
            return


def unpack(
    archive: bytes, wanted: Mapping[str, Version], new_part: Callable[[], Part], drop: Callable[[Part], None]
) -> tuple[list[tuple[str, Part, Version]], OSError | None]:
    """Write each file that was asked for, and is what it should be, into a part of its own, and close that.

    One that is not has most often changed again: it is left out. Also returns why it had to end early, if the disk did
    not take it.
    """
    parts, left = list[tuple[str, Part, Version]](), dict(wanted)
    for member in members(archive):
        version = left.pop(member.path, None)
        if version is None:
            continue
        if len(member.content) != version.size or hashlib.sha256(member.content).hexdigest() != version.sha256:
            continue
        mtime = member.mtime if version.mtime is None else version.mtime
        executable = member.executable if version.executable is None else version.executable
        version = version._replace(mtime=mtime, executable=executable)
        part = None
        try:
            part = new_part()
            part.fill(member.content, version)
        except OSError as error:
            if part:
                drop(part)
            return parts, error
        parts.append((member.path, part, version))
    return parts, None


def _records(data: bytes) -> dict[str, str]:
    """What a pax header says: "LENGTH KEY=VALUE\\n", again and again. Raises ValueError."""
    found, at = dict[str, str](), 0
    while at < len(data):
        length = data[at : data.index(b" ", at, at + LONGEST_LENGTH)]
        begin, end = at + len(length) + 1, at + int(length)
        if not begin + 2 < end <= len(data):
            raise ValueError("a record that does not end")
        key, _, value = data[begin : end - 1].partition(b"=")
        found[key.decode()] = value.decode()
        at = end
    return found


def _octal(field: bytes) -> int:
    return int(field.strip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode()
