"""A mirror: the directory, the server, and the limits; what it does while its copy is open is the session's."""

import contextlib
import math
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from lab.clients.connections import address_below, http_client
from lab.clients.follower import RETRY, Log, Retry, check_positive
from lab.mirror.copy import Copy
from lab.mirror.report import Applied, Counters
from lab.mirror.session import Session
from lab.mirror.settings import Settings
from servers.arguments import checked_token
from servers.feed import HEARTBEAT

MOST = 64  # fetches at a time


class Mirror:
    """A mirror of the server at `url` in the directory `copy`, which is made if it is not there.

    At most `parallel` fetches at once, each begun within `jitter` seconds at random, so that many mirrors do not ask in
    the same instant; a link is dead after 2.5 `heartbeat`s of silence, a fetch after `timeout` (s). `retry` paces what
    failed; its `give_up_after` ends `follow` when the server does not answer, and `sync` also when a file cannot be
    had. `token` goes out as a bearer token. A directory that is not empty must have been a mirror's, unless `adopt`:
    what the server has too is then taken over, the rest is left alone. `log` counts requests (`ClientLog` is one).
    """

    def __init__(
        self,
        url: str,
        copy: str | os.PathLike[str],
        *,
        parallel: int = 4,
        jitter: float = 0.05,
        heartbeat: float = HEARTBEAT,
        timeout: float = 30.0,
        retry: Retry = RETRY,
        token: str | None = None,
        adopt: bool = False,
        log: Log | None = None,
    ) -> None:
        if not 1 <= parallel <= MOST or not 0 <= jitter < math.inf:
            raise ValueError(f"a mirror needs 1 to {MOST} fetches in parallel, and a jitter of 0 s or more")
        check_positive(heartbeat=heartbeat, timeout=timeout)
        self.url, self.copy, self.adopt = url, Path(copy), adopt
        headers = {} if token is None else {"Authorization": f"Bearer {checked_token(token)}"}
        files_url = address_below(url, "/files")
        self.settings = Settings(url, files_url, parallel, jitter, heartbeat, timeout, retry, headers, log)
        self.counters = Counters()

    def __repr__(self) -> str:
        return f"<mirror of {self.url} in {self.copy}: {self.counters}>"

    async def sync(self) -> list[Applied]:
        """List once and apply it. Raises ClientError, CopyError, and OSError if the copy cannot be used at all.

        What vanishes or changes meanwhile is as the server last gave it: only `follow` settles that.
        """
        async with self._session(once=True) as session:
            await session.list()
            applied = []
            while not session.idle:
                if change := await session.next():
                    applied.append(change)
            return applied

    async def follow(self) -> AsyncGenerator[Applied, None]:
        """Apply what the server says, for ever, from where the copy stands. Raises as `sync` does."""
        async with self._session(once=False) as session:
            session.start(session.watch)
            while True:
                if change := await session.next():
                    yield change

    @contextlib.asynccontextmanager
    async def _session(self, *, once: bool) -> AsyncGenerator[Session, None]:
        with Copy(self.copy, adopt=self.adopt) as copy:
            async with http_client(self.settings.timeout) as http:
                session = Session(self.settings, self.counters, copy, http, once=once)
                try:
                    yield session
                finally:
                    await session.stop()
