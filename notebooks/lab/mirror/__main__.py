"""python -m lab.mirror URL COPY: keep COPY identical to what a server has, until Ctrl-C or SIGTERM."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from lab.clients.follower import Retry
from lab.clients.terminal import run
from lab.mirror.mirror import MOST, Mirror
from lab.mirror.report import Applied
from servers.arguments import Parser, number, printable, token_in, whole
from servers.feed import HEARTBEAT
from servers.ignore import Ignore


def _options(arguments: list[str] | None, program: str) -> argparse.Namespace:
    p = Parser(prog=program, description="Keep COPY identical to what a server of file updates has.",
               epilog="What others put into COPY stays, unless the server has a file of that name.")  # fmt: skip
    p.add_argument("url", metavar="URL", help="what the server printed: http://HOST:PORT")
    p.add_argument("copy", metavar="COPY", type=Path, help="a directory: new, empty, or a mirror's")
    p.add_argument("--once", action="store_true", help="list, fetch and end")
    p.add_argument(
        "--adopt", action="store_true", help="take over a directory that is not empty, or another server's copy"
    )
    p.add_argument("--verify", action="store_true", help="read every file of COPY, and mend what is wrong")
    p.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    p.add_argument("--max-delete", type=whole(0, 10**9), metavar="N",
                   help="files that may go at once (half of COPY, and 100 at least)")  # fmt: skip
    p.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="leave out, as --ignore does")
    p.add_argument("--include", action="append", default=[], metavar="PATTERN", help="copy nothing else")
    p.add_argument("--parallel", type=whole(1, MOST), default=4, metavar="N", help="fetches at a time, at most (4)")
    p.add_argument("--heartbeat", type=number, default=HEARTBEAT, metavar="S", help="the server's (15)")
    p.add_argument("--timeout", type=number, default=30.0, metavar="S", help="of a fetch that has become silent (30)")
    p.add_argument(
        "--longest-pause", type=number, default=30.0, metavar="S", help="from try to try, on average half (30)"
    )
    p.add_argument(
        "--give-up-after", type=number, metavar="S", help="without an answer (default: never; with --once, 60)"
    )
    p.add_argument(
        "--token-file", type=token_in, metavar="FILE", dest="token", help="whose content the server asks for"
    )
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
        token=options.token,
        adopt=options.adopt,
        max_delete=options.max_delete,
        verify=options.verify,
        wants=wants(options.include, options.exclude),
    )
    if options.dry_run:
        for what, path in await mirror.plan():
            print(printable(f"would {what} {path}"))
        return
    if options.once:
        await mirror.sync()
        print(f"{printable(str(options.copy))} is complete: {mirror.counters}{mirror.left_out}")
        return
    async with contextlib.aclosing(mirror.follow()) as changes:
        async for change in changes:
            with tqdm.external_write_mode():
                print(_line(change), flush=True)


def wants(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path is to be copied. Raises ValueError for what is no pattern."""
    only, never = Ignore(include), Ignore(exclude)
    return lambda path: not never.hides(path) and (not only or only.hides(path))


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


def main(arguments: list[str] | None = None, program: str = "python -m lab.mirror") -> int:
    """Run until Ctrl-C or SIGTERM, or until the copy is complete; return the exit status."""
    options = _options(arguments, program)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING, handlers=[_AboveTheBar()])
    logging.getLogger("lab.mirror.news").setLevel(logging.INFO)
    return run(program, lambda: _run(options), interrupted=int(options.once))  # 1: not complete


if __name__ == "__main__":
    sys.exit(main())
