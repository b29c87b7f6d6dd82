"""How much a mirror deletes without being told to: what the source has lost by mistake is not lost in its copies.

    losses: files whose bytes would be nowhere in the copy ─▶ more than `--max-delete` within WINDOW ─▶ TooManyLosses

A file that is renamed is not lost. Without a number the limit is half of the copy, and 100 files at least.
"""

import time
from collections import deque

from lab.mirror.copy import CopyError

WINDOW = 60.0  # seconds in which the deletions of a stream are counted together
FEW = 100  # files that may always go


class TooManyLosses(CopyError):
    """More files would be deleted than may be."""


class Losses:
    """What has been deleted lately. `most` is how many files may go; None for half of the copy."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._times: deque[float] = deque()  # s

    def check(self, number: int, total: int) -> None:
        """Raise TooManyLosses if so many of `total` files must not go at once."""
        most = max(FEW, total // 2) if self.most is None else self.most
        if number > most:
            raise TooManyLosses(
                f"the server would have {number:,} of {total:,} files deleted, and {most:,} may be: if that is right,"
                f" start again with --max-delete {number}"
            )

    def count(self, present: int) -> None:
        """Another one goes, of so many that are there. Raises TooManyLosses."""
        now = time.monotonic()
        while self._times and now - self._times[0] > WINDOW:
            self._times.popleft()
        self.check(len(self._times) + 1, present + len(self._times))
        self._times.append(now)
