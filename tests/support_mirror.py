"""What the tests of the mirror share: a served directory in virtual time, and a server that does not do as it says."""

import contextlib
import hashlib
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lab.clients import Retry
from lab.mirror import Applied, Mirror
from lab.mirror.names import PRIVATE
from lab.virtual import serve
from servers import file_updates
from servers.feed import Feed
from servers.tree import Tree

HEARTBEAT = 2.0  # s


def contents(directory: Path) -> dict[str, str]:
    """Path to SHA-256 of every file below a directory, the mirror's own left out; directories end in "/".

    What goes while it looks, as in a copy that a mirror is at, is there or not.
    """
    found = dict[str, str]()
    for here, below, names in os.walk(directory):
        inside = Path(here).relative_to(directory)
        if inside == Path():
            below[:], names[:] = ([name for name in some if name != PRIVATE] for some in (below, names))
        found |= {f"{(inside / name).as_posix()}/": "" for name in below}
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                found[(inside / name).as_posix()] = sha256(Path(here, name).read_bytes())
    return found


def files(directory: Path) -> dict[str, str]:
    """The same without directories: what is compared where the original may have empty ones."""
    return {path: digest for path, digest in contents(directory).items() if digest}


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write(directory: Path, path: str, data: str | bytes) -> Path:
    """Write a file as an editor does, and the directories above it; return its name."""
    name = directory / path
    name.parent.mkdir(parents=True, exist_ok=True)
    name.write_bytes(data.encode() if isinstance(data, str) else data)
    return name


def remove(directory: Path, path: str) -> Path:
    """Remove a file or a whole directory; return the name it had."""
    name = directory / path
    if name.is_dir():
        shutil.rmtree(name)
    else:
        name.unlink()
    return name


Tamper = Callable[[bytes], bytes]


def flipped(body: bytes) -> bytes:
    """The bytes with one bit of the last one turned round."""
    return body[:-1] + bytes([body[-1] ^ 1])


def truncated(body: bytes) -> bytes:
    """The bytes without the last one."""
    return body[:-1]


class Meddler:
    """An application before another one, which does to the answers what a test wants done.

    `tamper` maps a file's path to what becomes of its body, popped off its list at each request; `before` and `after`
    are called with the path of each request when it comes and when its answer is complete.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.closing = app, getattr(app, "closing", None)
        self.tamper: dict[str, list[Tamper]] = {}
        self.before: Callable[[str], Coroutine[Any, Any, None]] | None = None
        self.after: Callable[[str], Coroutine[Any, Any, None]] | None = None
        self.headers: list[dict[str, str]] = []  # of every request
        self.queries: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        self.queries.append(scope["query_string"].decode())
        self.headers.append({key.decode(): value.decode() for key, value in scope["headers"]})
        if self.before:
            await self.before(path)
        tampers = self.tamper.get(path.removeprefix("/files/"))
        if not tampers:
            await self.app(scope, receive, send)
        else:
            tamper, start, body = tampers.pop(0), dict[str, Any](), b""

            async def collect(message: Message) -> None:
                nonlocal body, start
                if message["type"] == "http.response.start":
                    start = dict(message)
                    return
                body += message.get("body", b"")
                if not message.get("more_body"):
                    wrong = tamper(body)
                    kept = [(key, value) for key, value in start["headers"] if key.lower() != b"content-length"]
                    start["headers"] = [*kept, (b"content-length", str(len(wrong)).encode())]
                    await send(start)
                    await send({"type": "http.response.body", "body": wrong})

            await self.app(scope, receive, collect)
        if self.after:
            await self.after(path)


class Stage:
    """The real service of a real directory, in virtual time; it is not watched, but looked at when `look` is called."""

    url = "http://server"

    def __init__(self, directory: Path, *, history: int = 1000) -> None:
        self.directory, self.history, self.epoch = directory, history, 0
        self.source: str | None = None
        self.running = contextlib.AsyncExitStack()
        directory.mkdir(exist_ok=True)

    async def start(self) -> None:
        """Serve what stands there, with a new log."""
        self.epoch += 1
        self.feed, self.tree = Feed(history=self.history, epoch=f"log{self.epoch}"), Tree(self.directory)
        self.tree.source = self.source
        self.meddler = Meddler(file_updates.create_app(self.feed, self.tree, heartbeat=HEARTBEAT, retry=300))
        await self.running.enter_async_context(serve(self.meddler))

    async def stop(self) -> None:
        """End the server, its log with it."""
        await self.running.aclose()

    def look(self) -> None:
        """Publish what has changed since the last look."""
        for edit in self.tree.scan():
            said = {"size": edit.size, "sha256": edit.sha256, "mtime": edit.mtime, "executable": edit.executable}
            self.feed.publish(edit.path, edit.change, **said)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def served(directory: Path, *, history: int = 1000) -> AsyncIterator[Stage]:
    """A stage while the block runs."""
    stage = Stage(directory, history=history)
    await stage.start()
    try:
        yield stage
    finally:
        await stage.stop()


def a_mirror(copy: Path, url: str = Stage.url, **options: Any) -> Mirror:
    """A mirror with short limits and a seed."""
    limits: dict[str, Any] = {"heartbeat": HEARTBEAT, "timeout": 5.0, "retry": Retry(0.5, 4.0, rng=random.Random(1))}
    return Mirror(url, copy, **(limits | options))


async def following(mirror: Mirror, applied: list[Applied]) -> None:
    """Follow for ever, and append what was applied."""
    async with contextlib.aclosing(mirror.follow()) as changes:
        async for change in changes:
            applied.append(change)
