"""A mirror: the directory, the server, and the limits; what it does while its copy is open is the session's."""

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from lab.clients.connections import address_below, http_client
from lab.clients.follower import RETRY, Log, Retry, check_positive
from lab.mirror.copy import Copy, CopyGone, looked_at, may_begin
from lab.mirror.fetch import Origin
from lab.mirror.report import Applied, Counters, Faults
from lab.mirror.session import LOOK, Session
from lab.mirror.settings import RELIST, Settings, anything
from lab.mirror.word import Doing, Word, planned
from servers.arguments import checked_token
from servers.feed import HEARTBEAT

MOST = 64  # fetches at a time

log = logging.getLogger("lab.mirror")


class Mirror:
    """A mirror of the server at `url` in the directory `copy`, which is made if it is not there.

    At most `parallel` fetches at once, each begun within `jitter` seconds at random, so that many mirrors do not ask in
    the same instant; a link is dead after 2.5 `heartbeat`s of silence, a fetch after `timeout` (s). `retry` paces what
    failed; its `give_up_after` ends `follow` when the server does not answer, and `sync` also when a file cannot be
    had. `token` goes out as a bearer token. A directory that is not empty must have been a mirror's, unless `adopt`:
    what the server has too is then taken over, as is a copy of another server, and the rest left alone. `max_delete` is
    how many files may go at once, by default half of those there are, and 100 at least; `wants` says which paths are
    to be copied. After a reset, which goes to all mirrors at once, each lists within `relist` seconds at random; the
    first listing is never delayed. To `verify`, each file is read before it is believed. `log` counts requests
    (`ClientLog` is one).
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
        max_delete: int | None = None,
        verify: bool = False,
        wants: Callable[[str], bool] = anything,
        log: Log | None = None,
        relist: float = RELIST,
    ) -> None:
        if not 0 <= relist < math.inf:
            raise ValueError(f"a reset is answered by a listing 0 s later or more, not {relist!r}")
        if not 1 <= parallel <= MOST or not 0 <= jitter < math.inf:
            raise ValueError(f"a mirror needs 1 to {MOST} fetches in parallel, and a jitter of 0 s or more")
        check_positive(heartbeat=heartbeat, timeout=timeout)
        self.url, self.copy, self.verify = url, Path(copy), verify
        headers = {} if token is None else {"Authorization": f"Bearer {checked_token(token)}"}
        files_url = address_below(url, "/files")
        self.settings = Settings(
            url, files_url, parallel, jitter, heartbeat, timeout, retry, headers, log, adopt, max_delete, wants, relist
        )
        self.counters = Counters()
        self.left_out = ""  # what the server does not list, in words, once `sync` knows it

    def __repr__(self) -> str:
        return f"<mirror of {self.url} in {self.copy}: {self.counters}>"

    async def sync(self) -> list[Applied]:
        """List once and apply it. Raises ClientError, CopyError, and OSError if the copy cannot be used at all.

        What vanishes or changes meanwhile is as the server last gave it: only `follow` settles that.
        """
        async with self._session(once=True) as session:
            await session.list()
            self.left_out, applied = session.word.left_out, []
            while not session.idle:
                if change := await session.next():
                    applied.append(change)
            return applied

    async def follow(self) -> AsyncGenerator[Applied, None]:
        """Apply what the server says, for ever, from where the copy stands. Raises as `sync` does."""
        while True:
            try:
                async with self._session(once=False) as session:
                    device = session.copy.device
                    session.start(session.watch)
                    session.start(session.stay)
                    while True:
                        if change := await session.next():
                            yield change
            except CopyGone as error:
                log.warning("%s: waiting until it is back", error)
            while not may_begin(self.copy, device):  # noqa: ASYNC110  # nobody tells what is mounted
                await asyncio.sleep(LOOK)

    async def plan(self) -> list[tuple[Doing, str]]:
        """List, and say what `sync` would do. Nothing is written, and COPY not made. Raises as `sync` does."""
        settings, faults = self.settings, Faults(self.counters)
        state = looked_at(self.copy, adopt=settings.adopt, doubt=self.verify)
        word = Word(settings, self.counters, faults, state, self.copy.resolve())
        async with http_client(settings.timeout) as http:
            word.take(await Origin(settings, self.counters, faults, http).listing())
        return await planned(word)

    @contextlib.asynccontextmanager
    async def _session(self, *, once: bool) -> AsyncGenerator[Session, None]:
        with Copy(self.copy, adopt=self.settings.adopt, doubt=self.verify) as copy:
            async with http_client(self.settings.timeout) as http:
                session = Session(self.settings, self.counters, copy, http, once=once)
                try:
                    yield session
                finally:
                    await session.stop()
