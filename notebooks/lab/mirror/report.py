"""What a mirror tells: the changes that the copy has now, how much it has done, and what is wrong, said once."""

import logging
from dataclasses import dataclass
from typing import Literal

from servers.arguments import printable
from servers.feed import Change

LINK, STATE, MORE = "", "/", "//"  # what a fault may be about besides a path; no path is one of these
SHOWN = 300  # characters of a path in a line
NAMED = 100  # paths of which it is said what is wrong; of more at a time nobody reads

log = logging.getLogger("lab.mirror")


@dataclass(frozen=True, slots=True)
class Applied:
    """One change that the copy has now.

    `published` and `applied` in Unix time (s), `published` None for what a listing said; `how` the copy got it: what
    stood there already was "kept", what stood elsewhere in the copy "copied". `size` and `fetched` in bytes.
    """

    path: str
    change: Change
    size: int | None
    sha256: str | None
    published: float | None
    applied: float
    how: Literal["fetched", "copied", "kept", "removed"]
    fetched: int = 0


@dataclass
class Counters:
    """What a mirror has done so far.

    Files `fetched`, and `bytes` received for them; files `copied` from another path of the copy, and `deleted`; fetches
    that failed and were `refetched`; unsafe paths `refused`, others `excluded`; resets after which it `relisted`.
    """

    fetched: int = 0
    bytes: int = 0
    copied: int = 0
    deleted: int = 0
    refetched: int = 0
    refused: int = 0
    relisted: int = 0
    excluded: int = 0


class Faults:
    """What is wrong, by the path it is about, LINK or STATE: logged once as long as it is the same.

    What a server says of itself is a part of a line, never a line of its own. Of more than NAMED paths one line says
    that there are more; what is refused is counted apart from what may be well again.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._lines: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    def report(self, about: str, text: str, *arguments: object) -> None:
        """Log a fault."""
        self._say(self._lines, about, text % arguments)

    def mended(self, about: str) -> None:
        """It is well again: should the same happen anew, that is worth a line."""
        if self._lines.pop(about, None):
            self._lines.pop(MORE, None)

    def refuse(self, path: str, why: object) -> None:
        """Count and name a path that must not be written, or cannot be."""
        self._counters.refused += 1
        path = path if len(path) <= SHOWN else f"{path[:SHOWN]}..."
        self._say(self._refused, path, f"refused {path!r}: {why}")

    def _say(self, lines: dict[str, str], about: str, line: str) -> None:
        if about not in (LINK, STATE) and about not in lines and len(lines) >= NAMED:
            about, line = MORE, f"of more than {NAMED} paths at a time nothing is said; all are counted"
        line = printable(line)
        if lines.get(about) != line:
            lines[about] = line
            log.warning("%s", line)
