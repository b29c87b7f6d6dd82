"""The command line: python -m servers MODEL [options].

It serves one model on one feed, filled by a watched directory or by a seeded schedule. It prints one line
with the URL once it accepts connections, ends within 2 s of Ctrl-C (with --drain, of what that takes), and answers
what it cannot do with one line and exit status 2.
"""

import argparse
import functools
import logging
import math
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from servers.arguments import Parser, checked_token, number, open_standard_streams, origin, rate, token_in, whole
from servers.background import ServerError, run
from servers.feed import HEARTBEAT, Feed, Unavailable
from servers.guard import Doors
from servers.index import Index
from servers.models import MODELS, SLUGS, model
from servers.service import Service, Source
from servers.sources import play, synthetic_edits, watch
from servers.tree import Tree
from servers.workers import Post, post, supervise

TOKEN_VARIABLE = "FILE_UPDATES_TOKEN"


def parser(program: str = "python -m servers") -> Parser:
    """All options, with their defaults."""
    p = Parser(prog=program, description="Tell clients what changed, by one of four models.")
    p.add_argument("model", choices=SLUGS, metavar="MODEL", help=", ".join(SLUGS))
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    p.add_argument("--port", type=whole(0, 65535), default=8000, help="0: a free one")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--watch", type=Path, metavar="DIR", help="announce the changes of a real directory")
    source.add_argument("--rate", type=rate, default=1.0, metavar="R", help="synthetic updates a second (1); 0: none")
    p.add_argument("--regular", action="store_true", help="space them evenly (without: at random, Poisson)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the synthetic updates (0)")
    p.add_argument("--payload", type=whole(0, 2**20), default=0, metavar="BYTES",
                   help="synthetic file contents that travel inline (0: none)")  # fmt: skip
    p.add_argument("--history", type=whole(1, 10**7), default=10_000, metavar="N",
                   help="updates kept for clients that resume (10000)")  # fmt: skip
    p.add_argument("--heartbeat", type=number, default=HEARTBEAT, metavar="S", help="seconds between signs of life")
    p.add_argument("--max-age", type=number, metavar="S",
                   help="a stream ends at S seconds at most, and its client comes back (no limit)")  # fmt: skip
    p.add_argument("--drain", type=whole(0, 3600), default=0, metavar="S",
                   help="when told to stop, end the streams over S seconds; told twice, at once (0)")  # fmt: skip
    p.add_argument("--poll-interval", type=number, default=5.0, metavar="S", help="what X-Poll-Interval asks for")
    p.add_argument("--allow-origin", type=origin, action="append", default=[], metavar="ORIGIN",
                   help="admit a page from elsewhere to the WebSocket or the files (may be repeated)")  # fmt: skip
    p.add_argument("--fast", action="store_true", help="one of the four models by its fast path, for many clients")
    p.add_argument("--no-coalesce", dest="coalesce", action="store_false",
                   help="file-updates: send all of several updates of a path at once, not only the last")  # fmt: skip
    p.add_argument("--ignore", action="append", default=[], metavar="GLOB",
                   help="with --watch: leave out .git, '*.tmp', /build/ as git does (may be repeated)")  # fmt: skip
    p.add_argument("--state", type=Path, metavar="FILE",
                   help="with --watch: keep the known hashes there, so that a restart reads no file again")  # fmt: skip
    p.add_argument("--max-size", type=whole(0, 2**63), metavar="BYTES", help="with --watch: leave out larger files")
    p.add_argument(
        "--feed", metavar="URL", help="the log is in Redis, for many processes: redis://HOST:PORT/DB?key=KEY"
    )
    p.add_argument("--workers", type=whole(1, 256), default=1, metavar="N", help="with --feed: so many processes (1)")
    p.add_argument("--max-connections", type=whole(1, 10**6), metavar="N",
                   help="at once, of all workers; one more is answered 503 (no limit)")  # fmt: skip
    p.add_argument("--max-per-address", type=whole(1, 10**6), metavar="N",
                   help="of them, from one address; a proxy is one (no limit)")  # fmt: skip
    p.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                   help="be called so, and by no other name but localhost and addresses (may be repeated)")  # fmt: skip
    p.add_argument("--token-file", type=token_in, metavar="FILE", dest="token",
                   help=f"file-updates: has the token that requests must carry (or {TOKEN_VARIABLE} has)")  # fmt: skip
    return p


def build(options: argparse.Namespace, worker: Post | None = None) -> Service:
    """The application that the options describe. Raises OSError when the directory cannot be watched, or ValueError."""
    refuse_what_has_no_effect(options)
    if options.feed:
        return build_shared(options, waits=worker is not None and worker.again)
    feed = Feed(history=options.history)
    tree: Tree | None = None
    source: Source
    if options.watch:
        limit = math.inf if options.max_size is None else options.max_size
        index = Index(options.state, options.watch) if options.state else None
        remembered = index.load() if index else None
        tree = Tree(options.watch, limit=limit, ignore=options.ignore, remembered=remembered, first_look=False)
        tree.source = index.source if index else None
        source = functools.partial(watch, feed, tree, index)
    else:
        edits = synthetic_edits(options.rate, seed=options.seed, payload=options.payload, regular=options.regular)
        source = functools.partial(play, feed, edits)
    return finished(options, feed, tree, source)


def build_shared(options: argparse.Namespace, *, waits: bool) -> Service:
    """The same on a feed that is elsewhere, which one of its processes fills. Raises Unavailable, unless it `waits`."""
    try:
        from servers.redis_feed import RedisFeed
        from servers.shared import SharedTree, lead, watch_shared
    except ModuleNotFoundError as error:
        raise ValueError(f"--feed needs the package {error.name}: pip install -e '.[scale]'") from None

    index = Index(options.state, options.watch) if options.state else None
    if index:
        index.load()  # for its name; the files are read again by who needs them
    feed = RedisFeed(options.feed, history=options.history, watched=bool(options.watch), waits=waits)
    tree: SharedTree | None = None
    if options.watch:
        limit = math.inf if options.max_size is None else options.max_size
        tree = SharedTree(feed, options.watch, limit=limit, ignore=options.ignore)
        tree.source = index.source if index else None
        source: Source = functools.partial(watch_shared, feed, tree, index)
    else:
        schedule = {"seed": options.seed, "payload": options.payload, "regular": options.regular}

        def source() -> Coroutine[Any, Any, None]:
            return play(feed, synthetic_edits(options.rate, **schedule))

    leading = functools.partial(lead, feed, source, *([tree.unseen] if tree else []))
    return finished(options, feed, tree, leading)


def finished(options: argparse.Namespace, feed: Feed, tree: Tree | None, source: Source) -> Service:
    """The application of the chosen model."""
    chosen = model(options.model)
    offered = vars(options) | {
        "tree": tree,
        "interval": options.poll_interval,
        "allow_origins": options.allow_origin,
        "token": options.token or token_of_environment(),
    }
    chosen_path = {"fast": True} if options.fast else {}
    schedules = "rate" in chosen.options  # it makes its own, whose rate it can change
    app = chosen.create_app(
        feed,
        source=None if schedules and tree is None else source,
        **{name: offered[name] for name in chosen.options} | chosen_path,
    )
    app.doors = Doors(options.max_connections, options.max_per_address, options.allow_host)
    return app


def refuse_what_has_no_effect(options: argparse.Namespace) -> None:
    """Raise ValueError for an option that protects nothing here: silence would be taken for protection."""
    if options.model != "file-updates" and options.token:
        raise ValueError("--token-file is for file-updates")
    if not options.coalesce and options.model != "file-updates":
        raise ValueError("--no-coalesce is for file-updates: nothing else leaves updates out")
    if options.allow_origin and "allow_origins" not in model(options.model).options:
        raise ValueError(f"--allow-origin has no effect on {options.model}")
    if options.max_age and "max_age" not in model(options.model).options:
        raise ValueError(f"--max-age is for streams: it has no effect on {options.model}")
    if options.drain and options.model == "demo":
        raise ValueError("--drain is for one model: it has no effect on the demo")
    if options.fast and model(options.model) not in MODELS:
        raise ValueError("--fast is for the four models; file-updates is on that path already")
    if not options.watch and (options.ignore or options.state or options.max_size is not None):
        raise ValueError("--ignore, --state and --max-size need --watch")
    if options.feed and options.model == "demo":
        raise ValueError("--feed is for the four models and file-updates")
    if options.workers > 1 and not options.feed:
        raise ValueError(
            "--workers needs --feed: without a log that they share, each client gets a part of the updates"
        )
    if options.workers > 1 and sys.platform == "win32":
        raise ValueError("--workers needs sockets that can be handed on: not on Windows")
    if options.regular and (options.watch or options.model == "demo"):
        raise ValueError("--regular spaces synthetic updates: not with --watch, and the demo has a schedule of its own")


def token_of_environment() -> str | None:
    """The token in the environment, if there is one. Raises ValueError for one that could not be."""
    token = os.environ.get(TOKEN_VARIABLE)
    try:
        return None if token is None else checked_token(token)
    except ValueError as error:
        raise ValueError(f"{TOKEN_VARIABLE}: {error}") from None


def main(arguments: list[str] | None = None, program: str = "python -m servers") -> int:
    """Run until Ctrl-C or SIGTERM; return the exit status."""
    open_standard_streams()
    command = parser(program)
    options = command.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    worker = post()
    if worker:
        options.max_connections = worker.share(options.max_connections)
        options.max_per_address = worker.share(options.max_per_address)
    try:
        if options.workers > 1 and worker is None:
            refuse_what_has_no_effect(options)
            if min(options.max_connections or math.inf, options.max_per_address or math.inf) < options.workers:
                raise ValueError("--max-connections and --max-per-address are shared out: at least one for each worker")
            words = sys.argv[1:] if arguments is None else arguments
            return supervise(
                words, options.model, count=options.workers, host=options.host, port=options.port, drain=options.drain
            )
        app = build(options, worker)
        if worker:
            enough, listener = worker.serve_until_orphaned(app), worker.listener
            return run(app, options.model, host=options.host, listener=listener, enough=enough, drain=options.drain)
    except (ServerError, Unavailable) as error:
        command.error(str(error))
    except OSError as error:
        command.error(f"{options.watch}: {error.strerror}")
    except ValueError as error:
        command.error(str(error))
    except KeyboardInterrupt:  # while it takes its first look at a large directory
        return 0
    try:
        return run(app, options.model, host=options.host, port=options.port, drain=options.drain)
    except ServerError as error:
        command.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
