"""The checks of notebook 06: the size from which announcing beats sending along, and a mirror among troubles."""

import asyncio
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lab.bench.edits import Original, snapshot
from lab.checks.verdict import STUB, Verdict, compared, is_stub
from lab.theory import notify_or_inline
from lab.virtual import Link, Net, run_virtual, serve
from servers import file_updates
from servers.feed import Feed
from servers.service import Service
from servers.tree import Tree

Mirror = Callable[[str, Path], Awaitable[None]]

DELAY, RATE = 0.025, 100_000.0  # s one way, bytes/s
BIG = 300_000  # bytes: seconds on the way
SLOW = 2.0  # s that one answer is held up on its way
PATIENCE = 15.0  # virtual seconds for a mirror to do what it should
LOOK = 0.1  # s between two looks at the copy


def crossover(function: Callable[[float, float], float]) -> Verdict:
    """Exercise: `crossover(request, wanted)`: from which size on announcing takes fewer bytes than sending along."""
    mistakes: dict[str, Callable[..., Any]] = {
        "Inline, contents are base64 in JSON: 4 bytes for 3.": lambda r, w: w * r / (1 - w),
        "Base64 makes 4 bytes of 3; this makes 3 of 4.": lambda r, w: w * r / (3 / 4 - w),
        "Only a share of the clients makes a request; this counts one for every client.": lambda r, w: r / (4 / 3 - w),
        "The share counts twice: those who want it pay for the request and for the content.": (
            lambda r, w: w * r / (4 / 3 - 1)
        ),
        "That is right if every client wants every file; only a share of them does.": lambda r, w: r / (4 / 3 - 1),
        "Turned round: it is the request that is weighed against what each byte costs more.": lambda r, w: (
            (4 / 3 - w) / (w * r)
        ),
    }
    cases = [(480.0, 0.5), (480.0, 0.1), (300.0, 0.9)]
    praise = "A share of the clients pays a request and the content once; inline, all pay four thirds of it."
    return compared(function, notify_or_inline, mistakes, cases, praise)


def mirror(client: Mirror) -> Verdict:
    """Exercise: `client(url, copy)` keeps the directory `copy` identical, whatever happens on the way.

    It runs in virtual time against the real service, in a world where everything of `_TROUBLES` happens, in that order.
    """
    if is_stub(client):
        return STUB
    with tempfile.TemporaryDirectory() as folder:
        return run_virtual(lambda net: _World(Path(folder), net).try_out(client), link=Link(delay=DELAY, rate=RATE))


class _World:
    """An original that changes, a service with troubles, and a copy under observation."""

    def __init__(self, folder: Path, net: Net) -> None:
        self.folder, self.net = folder, net
        names = ("a.txt", "b/c d#1.txt", "falsified.txt", "slow.txt", "gone.txt")
        self.original = Original(folder / "original", {name: f"the first {name}".encode() for name in names})
        self.copy = folder / "in" / "copy"
        self.copy.mkdir(parents=True)
        self.listed = self.falsify = self.slow = False  # whether it has been listed; what happens to the next fetch
        self.feed, self.tree = Feed(), Tree(self.original.directory)

    def service(self) -> Service:
        """The service as it is, on the directory as it is now, with the troubles around it."""
        self.feed, self.tree = Feed(), Tree(self.original.directory)
        app = file_updates.create_app(self.feed, self.tree)
        app.add_middleware(_Troubled, world=self)
        return app

    def write(self, path: str, text: str | bytes) -> None:
        """Write a file of the original, and announce it."""
        self.original.write(path, text.encode() if isinstance(text, str) else text)
        self.announce()

    def announce(self) -> None:
        for edit in self.tree.scan():
            self.feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)

    @property
    def identical(self) -> bool:
        return snapshot(self.copy) == snapshot(self.original.directory)

    async def settles(self) -> bool:
        """Whether the copy becomes identical in time."""
        for _ in range(int(PATIENCE / LOOK)):
            if self.identical:
                return True
            await asyncio.sleep(LOOK)
        return self.identical

    async def try_out(self, client: Mirror) -> Verdict:
        """Everything that happens, one trouble after another, until one of them has beaten the mirror."""
        running: asyncio.Future[None] | None = None
        try:
            async with serve(self.service()) as server:
                running = asyncio.ensure_future(client(server.url, self.copy))
                for trouble in _TROUBLES:
                    if fault := await trouble(self):
                        return _explained(running, fault)
            return _explained(running, await _restart(self))
        finally:
            if running:
                running.cancel()
                await asyncio.wait({running}, timeout=60)
                if not running.cancelled():
                    running.exception()  # seen


def _explained(running: "asyncio.Future[None]", fault: str | None) -> Verdict:
    if running.done() and (error := running.exception()):
        return Verdict(False, f"It stopped: {type(error).__name__}: {error}.")
    if running.done():
        return Verdict(False, "It ended, and learns of nothing more: a mirror follows until it is cancelled.")
    if fault:
        return Verdict(False, fault)
    return Verdict(True, "Identical after a gap, a forgery, half a file, a late fetch, a cut and a restart.")


# ── what happens, in this order; each says what is wrong, or nothing ─────────────────────────────────────────────────


async def _gap(world: _World) -> str | None:
    if await world.settles():
        return None
    if not snapshot(world.copy):
        return f"After {PATIENCE:.0f} s the copy is still empty: list first, and fetch what is listed."
    if "between.txt" not in snapshot(world.copy):
        return (
            "“between.txt” came after the listing and before the stream, and never arrived: "
            "watch from the listing's cursor, not from now."
        )
    return "Some files of the listing never arrived as they are: is each of them fetched, by its quoted name?"


async def _escape(world: _World) -> str | None:
    if any(path.name == "escaped.txt" for path in world.folder.rglob("*")):
        return "It wrote outside of the copy: the listing held a name with “..”, and the name was believed."
    return None


async def _forgery(world: _World) -> str | None:
    world.falsify = True
    world.write("falsified.txt", "the second falsified.txt")
    if await world.settles():
        return None
    return "A fetch was falsified on its way, and the copy keeps it: compare the SHA-256, and fetch again."


async def _in_place(world: _World) -> str | None:
    old, held = (world.copy / "a.txt").read_bytes(), world.folder / "held"
    os.link(world.copy / "a.txt", held)  # as a reader would hold it that has opened it
    world.write("a.txt", "the second a.txt, which is longer")
    if not await world.settles():
        return "A modified file did not arrive: is the stream read on while files are fetched?"
    if held.read_bytes() != old:
        return "A reader that had the old file open saw it change: write beside it, then rename (`Path.replace`)."
    return None


async def _half(world: _World) -> str | None:
    content = b"0123456789" * (BIG // 10)
    whole = {hashlib.sha256(content).hexdigest(), None}
    world.write("big.bin", content)
    for _ in range(int(2 * BIG / RATE / LOOK)):
        await asyncio.sleep(LOOK)
        if snapshot(world.copy).get("big.bin") not in whole:
            return "A reader saw half of a file while it was being fetched: write beside it, then rename."
    return None if await world.settles() else "A large file did not arrive."


async def _overtaken(world: _World) -> str | None:
    world.slow = True
    world.write("slow.txt", "the second slow.txt")
    await asyncio.sleep(SLOW / 2)
    world.original.delete("slow.txt")
    world.announce()
    await asyncio.sleep(2 * SLOW)
    if not await world.settles() and "slow.txt" in snapshot(world.copy):
        return (
            "A deleted file came back: its fetch began before the deletion and ended after it. "
            "Apply the news of one path in their order."
        )
    return None


async def _cut(world: _World) -> str | None:
    await asyncio.sleep(PATIENCE)  # until nothing is on its way any more
    world.net.link.cut()
    world.write("a.txt", "the third a.txt")
    if await world.settles():
        return None
    return "The stream was cut, and what came then never arrived: connect again, from the last cursor."


async def _restart(world: _World) -> str | None:
    world.original.delete("gone.txt")
    world.original.write("new.txt", b"written while nobody was serving")
    async with serve(world.service()):
        if await world.settles():
            return None
    if "new.txt" not in snapshot(world.copy):
        return "The server came back with a new epoch, and what had changed never arrived: at a reset, list again."
    return (
        "“gone.txt” was deleted while the server was away, and the copy still has it: "
        "after listing again, delete what is not listed."
    )


_TROUBLES = (_gap, _escape, _forgery, _in_place, _half, _overtaken, _cut)


class _Troubled:
    """ASGI middleware: what happens to the listing and to the files on their way."""

    def __init__(self, app: ASGIApp, world: _World) -> None:
        self.app, self.world = app, world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if path == "/files":
            await self.forged(scope, receive, send)
            if not self.world.listed:
                self.world.listed = True
                self.world.write("between.txt", "nobody was watching yet")
        elif path.endswith("/escaped.txt"):
            await _answer(send, FORGED)
        elif path == "/files/falsified.txt" and self.world.falsify:
            self.world.falsify = False
            await self.app(scope, receive, lambda message: send(_falsified(message)))
        elif path == "/files/slow.txt" and self.world.slow:
            self.world.slow = False
            async with _held_back(send) as slowly:
                await self.app(scope, receive, slowly)
        else:
            await self.app(scope, receive, send)

    async def forged(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The listing, with a file in it that leads out of the copy."""
        parts = list[Message]()

        async def keep(message: Message) -> None:
            parts.append(message)

        await self.app(scope, receive, keep)
        start, body = parts[0], b"".join(part.get("body", b"") for part in parts)
        if start["status"] == 200:
            listing = json.loads(body)
            listing["files"].append(
                {"path": "../escaped.txt", "size": len(FORGED), "sha256": hashlib.sha256(FORGED).hexdigest()}
            )
            body = json.dumps(listing).encode()
            start["headers"] = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            start["headers"].append((b"content-length", b"%d" % len(body)))
        await send(start)
        await send({"type": "http.response.body", "body": body})


FORGED = b"outside"


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"etag", f'"{hashlib.sha256(body).hexdigest()}"'.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _falsified(message: Message) -> Message:
    if body := message.get("body", b""):
        return {**message, "body": bytes([body[0] ^ 1]) + body[1:]}
    return message


@contextlib.asynccontextmanager
async def _held_back(send: Send) -> AsyncIterator[Send]:
    """A `send` whose messages go out only SLOW seconds after the answer is ready."""
    held = list[Message]()

    async def keep(message: Message) -> None:
        held.append(message)

    yield keep
    await asyncio.sleep(SLOW)
    for message in held:
        await send(message)
