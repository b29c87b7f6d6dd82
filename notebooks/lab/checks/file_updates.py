"""The checks of notebook 06: the size from which announcing beats sending along, and a mirror among troubles.

request, wanted ─▶ answer ─▶ a size, exact or whole, compared with the law's and with those of mistakes
mirror ─▶ the real service, in trouble ─▶ the evidence: what it asked for and when, what stands in the copy
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lab.bench.edits import Original, snapshot
from lab.bench.result import count
from lab.checks.bounded import asked_for, explained, virtually
from lab.checks.values import plain
from lab.checks.verdict import Verdict, awaiting, compared, judged
from lab.theory import notify_or_inline
from lab.virtual import Link, Net, serve
from servers import file_updates
from servers.feed import Feed
from servers.service import Service
from servers.tree import Tree

Mirror = Callable[[str, Path], Awaitable[None]]

DELAY, RATE = 0.025, 100_000.0  # s one way, bytes/s
BIG = 300_000  # bytes: seconds on the way
SLOW = 2.0  # s that one answer is held up on its way
OFTEN = 3  # times in a row that a fetch is falsified, and that one is cut off
AWAY = 10.0  # s that nobody is serving
PATIENCE = 30.0  # virtual seconds for a mirror to do what it should, twice that after a restart
LOOK = 0.1  # s between two looks at the copy
STUBBORN = 5  # fetches of what is gone


# ── announce, or send along? ─────────────────────────────────────────────────────────────────────────────────────────


@judged
def crossover(function: Callable[[float, float], float]) -> Verdict:
    """Exercise: `crossover(request, wanted)`: from which size on announcing takes fewer bytes than sending along.

    A size may be a whole number of bytes: the one below or above the law's.
    """
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
        "The signs are turned round: inline, a byte of the file costs 4/3, and announced it costs the share.": (
            lambda r, w: w * r / (w - 4 / 3)
        ),
        "A byte of the file costs more inline by the difference, 4/3 less the share, not by their sum.": (
            lambda r, w: w * r / (4 / 3 + w)
        ),
    }
    cases = [(480.0, 0.5), (470.0, 0.13), (301.0, 0.9), (777.0, 0.37), (391.0, 1.0), (52.0, 0.02)]
    praise = "A share of the clients pays a request and the content once; inline, all pay four thirds of it."

    def size(request: float, wanted: float) -> Any:
        given, exact = plain(function(request, wanted)), notify_or_inline(request, wanted)
        whole = isinstance(given, (int, float)) and given == given // 1 and abs(given - exact) <= 1
        return exact if whole else given

    return compared(size, notify_or_inline, mistakes, cases, praise)


# ── a mirror ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@judged
def mirror(client: Mirror) -> Verdict:
    """Exercise: `client(url, copy)` keeps the directory `copy` identical, whatever happens on the way.

    It runs in virtual time against the real service, in a world where everything of `TROUBLES` happens, in that order.
    """
    with tempfile.TemporaryDirectory() as folder:
        return virtually(
            lambda net: _World(Path(folder).resolve(), net).try_out(awaiting(client)), link=Link(delay=DELAY, rate=RATE)
        )


@dataclass(frozen=True)
class Asked:
    """A request as the service saw it: its path, and the cursor that it names."""

    path: str
    after: str | None


class _World:
    """An original that changes, a service with troubles, and a copy under observation."""

    def __init__(self, folder: Path, net: Net) -> None:
        self.folder, self.net = folder, net
        names = ("a.txt", "b/c d#1.txt", "falsified.txt", "slow.txt", "gone.txt")
        self.original = Original(folder / "original", {name: f"the first {name}".encode() for name in names})
        self.copy = folder / "in" / "copy"
        self.copy.mkdir(parents=True)
        self.asked = list[Asked]()
        self.listed = self.slow = False  # has the first listing been answered? is the next fetch of slow.txt held up?
        self.falsify = 0  # fetches of falsified.txt, from now on
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

    def delete(self, path: str) -> None:
        self.original.delete(path)
        self.announce()

    def announce(self) -> None:
        for edit in self.tree.scan():
            self.feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)

    @property
    def wrong(self) -> list[str]:
        """The paths at which the copy is not what the original is."""
        there, here = snapshot(self.original.directory), snapshot(self.copy)
        return sorted(path for path in there.keys() | here.keys() if there.get(path) != here.get(path))

    def asked_for(self, path: str) -> int:
        return sum(asked.path == f"/files/{path}" for asked in self.asked)

    async def until(self, condition: Callable[[], bool], limit: float = PATIENCE) -> bool:
        for _ in range(int(limit / LOOK)):
            if condition():
                return True
            await asyncio.sleep(LOOK)
        return condition()

    async def settles(self, limit: float = PATIENCE) -> bool:
        """Whether the copy becomes identical in time."""
        return await self.until(lambda: not self.wrong, limit)

    async def try_out(self, client: Callable[[str, Path], Coroutine[Any, Any, None]]) -> Verdict:
        """Everything that happens, one trouble after another, until one of them has beaten the mirror."""
        running: asyncio.Task[None] | None = None
        try:
            async with serve(self.service()) as server:
                running = asyncio.ensure_future(client(server.url, self.copy))
                for trouble in TROUBLES:
                    fault = await trouble(self)
                    if (verdict := _judgement(running, fault)) is not None:
                        return verdict
            verdict = _judgement(running, await _restart(self))
            praise = (
                "Identical after a gap, forgeries, half a file, a late fetch, cuts and a restart, "
                f"with {count(len(self.asked), 'request')}."
            )
            return Verdict(True, praise) if verdict is None else verdict
        finally:
            if running:
                running.cancel()
                await asyncio.wait({running}, timeout=60)
                if running.done() and not running.cancelled():
                    running.exception()  # seen


def _judgement(running: "asyncio.Task[None]", fault: str | None) -> Verdict | None:
    if running.done() and running.cancelled():
        return Verdict(False, "It cancelled itself: a mirror follows until somebody else cancels it.")
    if running.done() and (error := running.exception()):
        text = explained(error)
        if isinstance(asked_for(error), httpx.TransportError):
            text = f"A connection that breaks must not end the mirror: catch that, pause, and try again. {text}"
        return Verdict(False, text)
    if running.done():
        return Verdict(False, "It ended, and learns of nothing more: a mirror follows until it is cancelled.")
    return Verdict(False, fault) if fault else None


# ── what happens, in this order; each says what is wrong, or nothing ─────────────────────────────────────────────────


def _left(world: _World, when: str) -> str:
    """What was expected and what came, where no mistake is evident."""
    there, here = snapshot(world.original.directory), snapshot(world.copy)
    wrong = world.wrong
    is_what = {
        path: "missing" if path not in here else "too many" if path not in there else "not as it is" for path in wrong
    }
    shown = ", ".join(f"“{path}” is {what}" for path, what in list(is_what.items())[:3])
    last = sum(asked.path == f"/files/{wrong[0]}" for asked in world.asked)
    return f"{when}, the copy is not identical: {shown}. “{wrong[0]}” was asked for {count(last, 'time')} in all."


async def _gap(world: _World) -> str | None:
    if await world.settles():
        return None
    if not snapshot(world.copy):
        return f"After {PATIENCE:.0f} s the copy is still empty: list first, and fetch what is listed."
    watches = [asked.after for asked in world.asked if asked.path == "/events"]
    if world.wrong == ["between.txt"] and watches and watches[0] is None:
        return (
            "“between.txt” came after the listing and before the stream, and never arrived: "
            "watch from the listing's cursor, not from now."
        )
    if "b/c d#1.txt" in world.wrong and world.asked_for("b/c d") and not world.asked_for("b/c d#1.txt"):
        return "“b/c d#1.txt” was asked for as “b/c d”: in an address, # begins another part. Quote the name."
    return _left(world, f"{PATIENCE:.0f} s after the start")


async def _escape(world: _World) -> str | None:
    for name, why in ESCAPES.items():
        if any(path.name == Path(name).name for path in world.folder.rglob("*")):
            return f"It wrote outside of the copy: {why}."
    return None


async def _forgery(world: _World) -> str | None:
    before, world.falsify = world.asked_for("falsified.txt"), OFTEN
    world.write("falsified.txt", "the second falsified.txt")
    if await world.settles():
        return None
    whole = {change.sha256 for change in world.original.changes}
    fetched = world.asked_for("falsified.txt") - before
    if snapshot(world.copy).get("falsified.txt", None) not in {*whole, None}:
        return "A fetch was falsified on its way, and the copy keeps it: compare the SHA-256, and fetch again."
    if world.wrong == ["falsified.txt"] and fetched <= OFTEN:
        return (
            f"{OFTEN} fetches in a row were falsified, and it gave up after {count(fetched, 'attempt')}: "
            "fetch until it is right."
        )
    return _left(world, f"{PATIENCE:.0f} s after {OFTEN} falsified fetches")


async def _in_place(world: _World) -> str | None:
    old, held = (world.copy / "a.txt").read_bytes(), world.folder / "held"
    os.link(world.copy / "a.txt", held)  # as a reader would hold it that has opened it
    world.write("a.txt", "the second a.txt, which is longer")
    if not await world.settles():
        return _left(world, f"{PATIENCE:.0f} s after “a.txt” was modified")
    if held.read_bytes() != old:
        return "A reader that had the old file open saw it change: write beside it, then rename (`Path.replace`)."
    return None


async def _half(world: _World) -> str | None:
    contents = {"big.bin": b"0123456789" * (BIG // 10), "large.bin": b"abcdefghij" * (BIG // 10)}
    for path, content in contents.items():
        world.write(path, content)
    for _ in range(int(4 * BIG / RATE / LOOK)):
        await asyncio.sleep(LOOK)
        for path, content in contents.items():
            with contextlib.suppress(FileNotFoundError):
                found = (world.copy / path).read_bytes()
                if found != content and content.startswith(found):
                    return f"A reader saw half of “{path}” while it was being fetched: write beside it, then rename."
                if found != content:
                    return (
                        f"“{path}” held {len(found):,} bytes that never stood in the original, while “big.bin” and "
                        "“large.bin” were being fetched: each fetch needs a file of its own to write to."
                    )
    return None if await world.settles() else _left(world, "After two large files")


async def _overtaken(world: _World) -> str | None:
    world.slow = True
    world.write("slow.txt", "the second slow.txt")
    world.write("brief.txt", "not for long")
    await asyncio.sleep(SLOW / 2)
    world.delete("slow.txt")
    world.delete("brief.txt")
    await asyncio.sleep(SLOW / 4)
    deleted = not (world.copy / "slow.txt").exists()
    await asyncio.sleep(2 * SLOW)
    if await world.settles():
        return None
    if world.asked_for("brief.txt") > STUBBORN:
        return (
            f"“brief.txt” was gone before it was fetched, and was asked for {world.asked_for('brief.txt')} times: "
            "after a 404 let it go, the news of it is coming."
        )
    if world.wrong == ["slow.txt"] and deleted:
        return (
            "A deleted file came back: its fetch began before the deletion and ended after it. "
            "Apply the news of one path in their order."
        )
    return _left(world, "After a file was deleted while it was being fetched")


async def _cut(world: _World) -> str | None:
    await asyncio.sleep(PATIENCE / 3)  # until nothing is on its way any more
    before = len(world.asked)
    world.net.link.cut()
    world.write("a.txt", "the third a.txt")
    if await world.settles():
        return None
    if not any(asked.path in ("/events", "/files") for asked in world.asked[before:]):
        return "The stream was cut, and it asked for no news any more: connect again, from the last cursor."
    return _left(world, f"{PATIENCE:.0f} s after the stream was cut")


async def _cut_off(world: _World) -> str | None:
    world.write("cut.bin", b"9876543210" * (BIG // 10))
    for cuts in range(OFTEN):
        if not await world.until(functools.partial(_asked_again, world, cuts)):
            return _given_up(world, cuts)
        await asyncio.sleep(BIG / RATE / 3)
        world.net.link.cut()
    if await world.settles():
        return None
    return _given_up(world, OFTEN) if world.asked_for("cut.bin") <= OFTEN else _left(world, "After cuts")


def _asked_again(world: _World, known: int) -> bool:
    return world.asked_for("cut.bin") > known or not world.wrong


def _given_up(world: _World, cuts: int) -> str:
    if not cuts:
        return _left(world, f"{PATIENCE:.0f} s after “cut.bin” was added")
    return (
        f"The fetch of “cut.bin” was cut off in the middle {count(cuts, 'time')}, and then it was not asked for again: "
        "fetch until it is whole, or gone (404)."
    )


async def _restart(world: _World) -> str | None:
    world.original.delete("gone.txt")
    world.original.write("new.txt", b"written while nobody was serving")
    before = len(world.asked)
    await asyncio.sleep(AWAY)
    async with serve(world.service()):
        if await world.settles(2 * PATIENCE):
            return None
    if len(world.asked) == before:
        return f"Nobody served for {AWAY:.0f} s, and it did not come back within {2 * PATIENCE:.0f} s more: try again."
    relisted = any(asked.path == "/files" for asked in world.asked[before:])
    if not relisted:
        return "The server came back with a new epoch, and what had changed never arrived: at a reset, list again."
    if world.wrong == ["gone.txt"]:
        return (
            "“gone.txt” was deleted while the server was away, and the copy still has it: "
            "after listing again, delete what is not listed."
        )
    return _left(world, f"{2 * PATIENCE:.0f} s after the server came back with a new epoch")


TROUBLES = (_gap, _escape, _forgery, _in_place, _half, _overtaken, _cut, _cut_off)
ESCAPES = {  # names in the first listing that lead out of the copy; {0}: its parent
    "../escaped.txt": "the listing held a name with “..”, and the name was believed",
    "../copy-escaped.txt": (
        "the listing held “../copy-escaped.txt”, whose path begins with that of “copy” letter by letter, and is not "
        "in it (`Path.is_relative_to` compares whole names)"
    ),
    "{0}/absolute-escaped.txt": "the listing held an absolute name, and `copy / name` is that name alone",
}


class _Troubled:
    """ASGI middleware: notes what is asked for, and is what happens to the listing and to the files on their way."""

    def __init__(self, app: ASGIApp, world: _World) -> None:
        self.app, self.world = app, world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] == "http":
            named = parse_qs(scope["query_string"].decode()).get("after", [None])[0]
            last = dict(scope["headers"]).get(b"last-event-id")
            self.world.asked.append(Asked(path, last.decode() if last else named))
        if path == "/files":
            await self.forged(scope, receive, send)
            if not self.world.listed:
                self.world.listed = True
                self.world.write("between.txt", "nobody was watching yet")
        elif path.endswith("escaped.txt"):
            await _answer(send, FORGED)
        elif path == "/files/falsified.txt" and self.world.falsify:
            self.world.falsify -= 1
            await self.app(scope, receive, lambda message: send(_falsified(message)))
        elif path == "/files/slow.txt" and self.world.slow:
            self.world.slow = False
            async with _held_back(send) as slowly:
                await self.app(scope, receive, slowly)
        else:
            await self.app(scope, receive, send)

    async def forged(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The listing, with files in it that lead out of the copy."""
        parts = list[Message]()

        async def keep(message: Message) -> None:
            parts.append(message)

        await self.app(scope, receive, keep)
        start, body = parts[0], b"".join(part.get("body", b"") for part in parts)
        if start["status"] == 200:
            listing = json.loads(body)
            digest = hashlib.sha256(FORGED).hexdigest()
            names = [name.format(self.world.copy.parent) for name in ESCAPES]
            listing["files"] += [{"path": name, "size": len(FORGED), "sha256": digest} for name in names]
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
