"""What stands in a copy, read in threads beside the loop: is it what it should be, and what can be made from it."""

import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from lab.mirror.names import Version
from lab.mirror.part import Part
from lab.mirror.state import Stat
from servers.hashing import CHUNK, Abandoned
from servers.places import identity, open_below


class Reading:
    """The files of a copy. Setting `abandoned` ends what runs in other threads: Abandoned is raised there."""

    def __init__(self, top: str) -> None:
        self.top, self.abandoned = top, False

    def stands(self, path: str, version: Version) -> Stat | None:
        """Read the file that stands there; its stat if it holds that version, else None."""
        try:
            with open_below(self.top, path.split("/")) as file:
                status = os.fstat(file.fileno())
                if status.st_size != version.size:
                    return None
                digest = hashlib.sha256()
                for chunk in self._chunks(file):
                    digest.update(chunk)
                same = identity(os.fstat(file.fileno())) == identity(status) and digest.hexdigest() == version.sha256
                return identity(status) if same else None
        except OSError:
            return None

    def fill(self, part: Part, source: str) -> None:
        """Write a source's bytes into a part. Raises OSError."""
        with open_below(self.top, source.split("/")) as file:
            for chunk in self._chunks(file):
                part.write(chunk)

    def begin(self, part: Part, path: str, status: Stat, known: "hashlib._Hash | None") -> None:
        """Have a part begin with what stands at a path, if it is what it was; `known` is the digest of that, if known.

        Raises OSError.
        """
        with open_below(self.top, path.split("/")) as file:
            if identity(os.fstat(file.fileno())) != status:
                raise OSError(f"{path!r} has been changed in the copy")
            if known is not None:
                part.begin(file, status[2], known)
            else:
                for chunk in self._chunks(file):
                    part.write(chunk)

    def go_on(self, part: Part, path: str, status: Stat, sha256: str) -> None:
        """Have a part that holds an earlier state of a file go on to what stands at its path. Raises OSError."""
        with open_below(self.top, path.split("/")) as file:
            if identity(os.fstat(file.fileno())) != status:
                raise OSError(f"{path!r} has been changed in the copy")
            file.seek(part.size)
            for chunk in self._chunks(file):
                part.write(chunk)
        if part.sha256 != sha256:
            raise OSError(f"{path!r} has not grown from what it was")

    def _chunks(self, file: BinaryIO) -> Iterator[bytes]:
        while chunk := file.read(CHUNK):
            if self.abandoned:
                raise Abandoned
            yield chunk
