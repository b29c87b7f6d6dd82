"""The command line: python -m servers MODEL [options].

It serves one model on one feed, filled by a watched directory or by a seeded schedule. It prints one line
with the URL once it accepts connections, ends within 2 s of Ctrl-C, and answers what it cannot do with
one line and exit status 2.
"""

import argparse
import contextlib
import functools
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from servers import demo, file_updates, long_polling, short_polling, sse, websocket
from servers.background import ServerError, serve
from servers.feed import Feed
from servers.service import HEARTBEAT, Service, Source
from servers.sources import Tree, play, synthetic_edits, watch

MODELS = ("short-polling", "long-polling", "websocket", "sse", "file-updates", "demo")


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake gets one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.splitlines())}\n")


def number(text: str) -> float:
    """A finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"a number above 0, not {text!r}")


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def convert(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= (value := int(text)) <= most:
                return value
        raise argparse.ArgumentTypeError(f"a whole number from {least} to {most}, not {text!r}")

    return convert


def parser() -> Parser:
    """All options, with their defaults."""
    p = Parser(prog="python -m servers", description="Tell clients what changed, by one of four models.")
    p.add_argument("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    p.add_argument("--port", type=whole(0, 65535), default=8000, help="0: a free one")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--watch", type=Path, metavar="DIR", help="announce the changes of a real directory")
    source.add_argument("--rate", type=number, default=1.0, metavar="R", help="synthetic updates a second (1)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the synthetic updates (0)")
    p.add_argument("--payload", type=whole(0, 2**20), default=0, metavar="BYTES",
                   help="synthetic file contents that travel inline (0: none)")  # fmt: skip
    p.add_argument("--history", type=whole(1, 10**7), default=10_000, metavar="N",
                   help="updates kept for clients that resume (10000)")  # fmt: skip
    p.add_argument("--heartbeat", type=number, default=HEARTBEAT, metavar="S", help="seconds between signs of life")
    p.add_argument("--poll-interval", type=number, default=5.0, metavar="S", help="what X-Poll-Interval asks for")
    p.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN",
                   help="admit a page from elsewhere to the WebSocket (may be repeated)")  # fmt: skip
    return p


def build(options: argparse.Namespace) -> Service:
    """The application that the options describe. Raises OSError when the directory cannot be watched, or ValueError."""
    feed = Feed(history=options.history)
    tree: Tree | None = None
    source: Source
    if options.watch:
        tree = Tree(options.watch)
        source = functools.partial(watch, feed, tree)
    else:
        edits = synthetic_edits(options.rate, seed=options.seed, payload=options.payload)
        source = functools.partial(play, feed, edits)
    match options.model:
        case "short-polling":
            return short_polling.create_app(feed, poll_interval=options.poll_interval, source=source)
        case "long-polling":
            return long_polling.create_app(feed, source=source)
        case "websocket":
            return websocket.create_app(feed, allow_origins=options.allow_origin, source=source)
        case "file-updates":
            return file_updates.create_app(feed, tree, heartbeat=options.heartbeat, source=source)
        case "demo":
            return demo.create_app(
                feed,
                rate=options.rate,
                interval=options.poll_interval,
                seed=options.seed,
                payload=options.payload,
                heartbeat=options.heartbeat,
                allow_origins=options.allow_origin,
                source=source if tree else None,
            )
        case _:
            return sse.create_app(feed, heartbeat=options.heartbeat, source=source)


def main(arguments: list[str] | None = None) -> int:
    """Run until Ctrl-C or SIGTERM; return the exit status."""
    command = parser()
    options = command.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    try:
        app = build(options)
    except OSError as error:
        command.error(f"{options.watch}: {error.strerror}")
    except ValueError as error:
        command.error(str(error))
    except KeyboardInterrupt:  # while it takes its first look at a large directory
        return 0
    enough = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: enough.set())
    try:
        server = serve(app, host=options.host, port=options.port, quiet=False, heartbeat=options.heartbeat)
    except ServerError as error:
        command.error(str(error))
    print(f"{options.model} at {server.url} (Ctrl-C stops it)", flush=True)
    enough.wait()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
