"""Keep a directory identical to the one that a server of file updates watches (servers/file_updates.py).

    mirror = Mirror(server.url, "copy")
    await mirror.sync()                                   # list, and fetch what differs

    async with contextlib.aclosing(mirror.follow()) as applied:
        async for change in applied: ...                  # list, then watch, for ever; goes on after any failure

    GET /files ─▶ what stands at cursor C ──┐
                                            ├─▶ what differs ─▶ GET /files/PATH ─▶ verify ─▶ rename into COPY
    GET /events after C ─▶ what changes ────┘     (lab/mirror/session.py)              (lab/mirror/copy.py)

Listing at C and watching from C leaves no gap; a reset leads to a new listing. All that a mirror knows is kept in COPY,
so that being killed is as good as stopping.

`python -m lab.mirror URL COPY` does that until Ctrl-C; with --once it ends when the copy is complete.
"""

import argparse
import asyncio
import contextlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from lab.clients.answers import ClientError
from lab.clients.models import RETRY, Log, Retry, address_below, http_client, printable
from lab.mirror.copy import Copy, CopyError
from lab.mirror.session import Applied, Counters, Session, Settings
from servers.arguments import Parser, number, whole
from servers.feed import HEARTBEAT

__all__ = ["Applied", "CopyError", "Counters", "Mirror"]


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
        if parallel < 1 or not (jitter >= 0 and heartbeat > 0 and timeout > 0):
            raise ValueError("a mirror needs parallel >= 1, jitter >= 0, heartbeat > 0 and timeout > 0")
        self.url, self.copy, self.adopt = url, Path(copy), adopt
        headers = {"Authorization": f"Bearer {token}"} if token else {}
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
            while session.unmet or session.busy or not session.events.empty():
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
                    for _ in range(self.settings.parallel):
                        session.start(session.work)
                    yield session
                finally:
                    await session.stop()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="python -m lab.mirror", description="Keep COPY identical to what a server of file updates has.",
               epilog="What others put into COPY stays, unless the server has a file of that name.")  # fmt: skip
    p.add_argument("url", metavar="URL", help="what the server printed: http://HOST:PORT")
    p.add_argument("copy", metavar="COPY", type=Path, help="a directory: new, empty, or a mirror's")
    p.add_argument("--once", action="store_true", help="list, fetch and end")
    p.add_argument("--adopt", action="store_true", help="take over a directory that is not empty and no mirror's")
    p.add_argument("--parallel", type=whole(1, 64), default=4, metavar="N", help="fetches at a time, at most (4)")
    p.add_argument("--heartbeat", type=number, default=HEARTBEAT, metavar="S", help="the server's (15)")
    p.add_argument("--timeout", type=number, default=30.0, metavar="S", help="of a fetch that has become silent (30)")
    p.add_argument(
        "--longest-pause", type=number, default=30.0, metavar="S", help="from try to try, on average half (30)"
    )
    p.add_argument(
        "--give-up-after", type=number, metavar="S", help="without an answer (default: never; with --once, 60)"
    )
    p.add_argument("--token-file", type=Path, metavar="FILE", help="whose content the server asks for")
    return p.parse_args(arguments)


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task
    with contextlib.suppress(NotImplementedError):  # on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    pause = options.longest_pause
    mirror = Mirror(
        options.url,
        options.copy,
        parallel=options.parallel,
        heartbeat=options.heartbeat,
        timeout=options.timeout,
        retry=Retry(min(1.0, pause), pause, options.give_up_after or (60.0 if options.once else None)),
        token=options.token_file and _token(options.token_file),
        adopt=options.adopt,
    )
    if options.once:
        await mirror.sync()
        print(f"{printable(str(options.copy))} is complete: {mirror.counters}")
        return
    async with contextlib.aclosing(mirror.follow()) as changes:
        async for change in changes:
            with tqdm.external_write_mode():
                print(_line(change), flush=True)


def _token(file: Path) -> str:
    token = file.read_text(errors="replace").strip()
    if not re.fullmatch("[!-~]+", token):
        raise ValueError(f"{file}: a token is one word of plain ASCII")
    return token


class _AboveTheBar(logging.StreamHandler[TextIO]):
    """Writes a fault as a line of its own, as `_run` does with a change, while a progress bar is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode():
            super().emit(record)


def _line(change: Applied) -> str:
    """A line of the command line: time, time since it was published, what, how, bytes received, path."""
    late = "" if change.published is None else f"{1000 * (change.applied - change.published):.1f} ms"
    clock = f"{datetime.fromtimestamp(change.applied):%H:%M:%S.%f}"[:-3]
    what = f"{clock} {late:>12}  {change.change:8}  {change.how:7}  {change.fetched:11,} bytes  {change.path}"
    return printable(what)


def main(arguments: list[str] | None = None) -> int:
    """Run until Ctrl-C or SIGTERM, or until the copy is complete; return the exit status."""
    options = _options(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING, handlers=[_AboveTheBar()])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have characters that this terminal has not
    try:
        asyncio.run(_run(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return int(options.once)  # not complete
    except BrokenPipeError:  # what read our lines has seen enough; the interpreter's last flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ClientError, CopyError, OSError, ValueError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"python -m lab.mirror: {printable(text)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
