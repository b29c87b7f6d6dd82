"""How a mirror works, paces itself and gives up; the same for all its parts."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from lab.clients.answers import GaveUp, Unavailable
from lab.clients.connections import address_below
from lab.clients.follower import RETRY, Log, Retry, named
from servers.feed import HEARTBEAT

RELIST = 5.0  # seconds over which the mirrors of one server spread their listings after a reset


def anything(path: str) -> bool:
    """All paths."""
    return True


@dataclass(frozen=True)
class Settings:
    """How a mirror works; see `lab.mirror.Mirror`. `url` is the server's, `files_url` where it lists its files."""

    url: str
    files_url: httpx.URL
    parallel: int = 4
    jitter: float = 0.05
    heartbeat: float = HEARTBEAT
    timeout: float = 30.0
    retry: Retry = RETRY
    headers: dict[str, str] = field(default_factory=dict)
    log: Log | None = None
    adopt: bool = False
    max_delete: int | None = None
    wants: Callable[[str], bool] = anything
    relist: float = RELIST

    @property
    def plain_url(self) -> str:
        """The server's URL without what is nobody's business."""
        url = httpx.URL(self.url)
        return str(url.copy_with(query=None, fragment=None, userinfo=b"")).rstrip("/")

    @property
    def bundle_url(self) -> httpx.URL:
        """Where many files are asked for at once."""
        return address_below(self.url, "/bundle")

    def pause(self, error: Exception, failures: int) -> float:
        """How long to wait after a failure (s): as long as the server asks for, and jitter."""
        return (error.wait if isinstance(error, Unavailable) else 0.0) + self.retry.jitter(failures)

    def gave_up(self, what: str, error: Exception) -> GaveUp:
        """The error that says what was not to be had, and why."""
        return GaveUp(f"{what}, for {self.retry.give_up_after:g} s ({named(error)})")

    def relist_pause(self) -> float:
        """A pause (s) before a listing that a reset asked for: all mirrors of the server are asked in that instant."""
        return (self.retry.rng or random).uniform(0, self.relist)

    def spread(self) -> float:
        """A pause (s) that keeps many mirrors from asking in the same instant."""
        return (self.retry.rng or random).uniform(0, self.jitter)
