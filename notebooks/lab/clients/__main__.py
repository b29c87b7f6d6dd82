"""python -m lab.clients MODEL URL: print the updates of a server, a line each, until Ctrl-C."""

import argparse
import contextlib
import sys
import time
from datetime import datetime

from lab.clients.answers import News, Reset
from lab.clients.follower import Retry
from lab.clients.models import MODELS
from lab.clients.terminal import run
from servers.arguments import Parser, number, printable


def _options(arguments: list[str] | None, program: str) -> argparse.Namespace:
    p = Parser(prog=program, description="Print the updates of a server as they arrive.")
    p.add_argument("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    p.add_argument("url", metavar="URL", help="what the server printed: http://HOST:PORT")
    p.add_argument("--after", metavar="CURSOR", help="begin after this cursor; 0: with the oldest (default: now)")
    p.add_argument("--interval", type=number, metavar="S", help="of short polling (default: what the server asks)")
    p.add_argument("--give-up-after", type=number, default=10, metavar="S", help="without an answer (10)")
    options = p.parse_args(arguments)
    if options.interval and options.model != "short-polling":
        p.error("--interval is for short-polling")
    return options


async def _show(options: argparse.Namespace) -> None:
    pace = {"interval": options.interval} if options.interval else {}
    retry = Retry(give_up_after=options.give_up_after)
    stream = MODELS[options.model](options.url, options.after, retry=retry, **pace)
    async with contextlib.aclosing(stream):
        async for news in stream:
            print(_line(news), flush=True)


def _line(news: News) -> str:
    """A line of the command line: time, delay, number, change, path; nothing a terminal would obey."""
    now = time.time()
    if isinstance(news, Reset):
        what = f"reset ({news.reason}): list again; it goes on from {news.cursor}"
    else:
        what = f"{1000 * (now - news.published):9.1f} ms  #{news.seq}  {news.change:8}  {news.path}"
    return f"{datetime.fromtimestamp(now):%H:%M:%S.%f}"[:-3] + "  " + printable(what)


def main(arguments: list[str] | None = None, program: str = "python -m lab.clients") -> int:
    """Run until Ctrl-C or the stream's end; return the exit status."""
    options = _options(arguments, program)
    return run(program, lambda: _show(options))


if __name__ == "__main__":
    sys.exit(main())
