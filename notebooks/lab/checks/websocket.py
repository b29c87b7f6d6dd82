"""The checks of notebook 03: a frame as a client sends it, and a client that outlives every kind of end."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import WebSocket

from lab.bench.experiment import Client, ClientLog, ExperimentError, experiment
from lab.bench.result import Run
from lab.bench.schedule import Schedule
from lab.checks.verdict import STUB, Verdict, is_stub, tried
from lab.theory import framing
from lab.virtual import Link, Net, run_virtual, serve
from servers import websocket
from servers.feed import Feed
from servers.service import Service

KEY = bytes.fromhex("37fa213d")  # of RFC 6455, section 5.7
TEXTS = ("Hello", "", "a" * 125, "é" * 100, "a" * 126, "a" * 65535, "a" * 65536)

DELAY = 0.025  # s, one way
CUT, GOING, BACK, DARK, OVER = 15.0, 35.0, 50.0, 80.0, 200.0  # s of the client's trial
LATE = 60.0  # s: a dead link is noticed sooner
PATIENT = 60  # handshakes, at most; without a pause there are twice as many while the server is going


# ── a client's frame ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Encoder:
    """A client's text frame, right or with one mistake in it."""

    first: int = 0x81  # FIN and the opcode of text
    mask: int = 0x80
    masks: bool = True
    sends_key: bool = True
    characters: bool = False  # counts these, not bytes
    short: int = framing.SHORT
    medium: int = framing.MEDIUM
    little: bool = False

    def __call__(self, text: str, key: bytes) -> bytes:
        payload = text.encode()
        size = len(text) if self.characters else len(payload)
        order: Any = "little" if self.little else "big"
        if size <= self.short:
            length = bytes([self.mask | size])
        elif size <= self.medium:
            length = bytes([self.mask | 126]) + size.to_bytes(2, order)
        else:
            length = bytes([self.mask | 127]) + size.to_bytes(8, order)
        if self.masks:
            payload = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
        return bytes([self.first]) + length + (key if self.sends_key else b"") + payload


FRAME_MISTAKES: dict[str, Callable[[str, bytes], bytes]] = {
    "That is a server's frame: a client sets the mask bit, sends the key and masks (section 5.3).": (
        Encoder(mask=0, masks=False, sends_key=False)
    ),
    "The key is there, but the payload is not masked with it: byte n is XORed with key[n % 4].": Encoder(masks=False),
    "The payload is masked, but the mask bit says that it is not: the second byte begins with a 1.": Encoder(mask=0),
    "The payload is masked, but the key is missing: nobody can read it.": Encoder(sends_key=False),
    "The length is little-endian; on the wire the high byte comes first (“network byte order”).": Encoder(little=True),
    "The length counts characters; it must count the bytes of the UTF-8 text.": Encoder(characters=True),
    "126 does not fit into 7 bits: 126 and 127 are the signs for a longer length field.": Encoder(short=126),
    "FIN is missing: this message never ends. The first byte of a whole text is 0x81.": Encoder(first=0x01),
    "That is a binary message, opcode 2; text is opcode 1.": Encoder(first=0x82),
    "Each length has the shortest form that it fits into (section 5.2), and 126 needs only 16 bits.": (
        Encoder(medium=framing.SHORT)
    ),
}


def client_frame(function: Callable[[str, bytes], bytes]) -> Verdict:
    """Exercise: `client_frame(text, key)` gives the bytes of a client's text frame, masked with the four of `key`."""
    if is_stub(function):
        return STUB
    given = [tried(function, (text, KEY)) for text in TEXTS]
    right = [framing.frame(text.encode(), KEY) for text in TEXTS]
    if given == right:
        return Verdict(True, "It is what a client sends, with 7, 16 and 64 bits of length.")
    for mistake, encoder in FRAME_MISTAKES.items():
        if given == [encoder(text, KEY) for text in TEXTS]:
            return Verdict(False, mistake)
    text, got, wanted = next(case for case in zip(TEXTS, given, right, strict=True) if case[1] != case[2])
    size, longer = len(text.encode()), ": such a length needs the longer field"
    hint = longer if size > framing.SHORT else ""
    if isinstance(got, Exception):
        return Verdict(False, f"For a text of {size} bytes it raised {type(got).__name__}: {got}{hint}.")
    if not isinstance(got, (bytes, bytearray)):
        return Verdict(False, f"For a text of {size} bytes it gives {type(got).__name__}, and should give bytes.")
    if len(got) != len(wanted) and got[:2] == wanted[:2]:
        return Verdict(False, f"For a text of {size} bytes it gives {len(got)}, and should give {len(wanted)}.")
    place = next((n for n, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), len(got))
    is_now = f"is 0x{got[place]:02x}" if place < len(got) else "is missing"
    hint = hint if place == 1 else ""
    return Verdict(
        False, f"For a text of {size} bytes, byte {place} {is_now}, and should be 0x{wanted[place]:02x}{hint}."
    )


# ── a robust client ──────────────────────────────────────────────────────────────────────────────────────────────────


def websocket_client(client: Client) -> Verdict:
    """Exercise: `client(url, log)` follows by WebSocket, and outlives what ends a connection, as far as it should.

    In virtual time, on the real server: the connection is reset; the server goes (1001), and goes on doing so for a
    quarter of a minute; the path dies without a word while another one opens. On a second server that closes with 1008
    it must not come back.
    """
    if is_stub(client):
        return STUB
    try:
        run = run_virtual(lambda net: _troubled(net, client), link=Link(delay=DELAY))
    except ExperimentError as problem:
        return Verdict(False, _explained(str(problem)))
    if fault := _fault(run):
        return Verdict(False, fault)
    handshakes, ended = run_virtual(lambda net: _refused(net, client), link=Link(delay=DELAY))
    if handshakes > 1:
        again = f"{handshakes - 1} times in a minute"
        return Verdict(False, f"It came back {again} after 1008: what it does is against the rules, so it must stop.")
    if not ended:
        return Verdict(False, "After 1008 it neither ended nor came back: raise, so that somebody learns of it.")
    return Verdict(
        True, f"All {run.expected} updates once, over {run.requests} connections; and 1008 was the end of it."
    )


def _fault(run: Run) -> str | None:
    last = max((delivery.at for delivery in run.all_deliveries), default=0.0)
    if run.requests > PATIENT:
        return f"{run.requests} handshakes: it comes back without a pause to a server that is going (1001)."
    if run.lost and last < GOING + 1 and max(request.end for request in run.all_requests) < GOING + 1:
        return "It ended when the server went (1001): `async for` ends quietly then, and going is no reason to stop."
    if run.lost:
        return f"{run.lost} of {run.expected} updates were lost: a new connection must begin at the last cursor."
    if run.duplicated:
        return f"{run.duplicated} updates came again: the cursor must move with every message."
    if (late := float(run.delays.max())) > LATE:
        return f"It was deaf for {late:.0f} s: the path died without a word, and no heartbeat noticed."
    return None


def _explained(problem: str) -> str:
    if "no request" in problem:
        return "It made no request inside `with log.request():`, so nothing can be counted."
    if "ConnectionClosed" in problem or "OSError" in problem or "Connection" in problem:
        return f"A connection that ends must not end the client: catch it, pause, connect again. ({problem})"
    return f"It stopped: {problem}."


async def _troubled(net: Net, client: Client) -> Run:
    async with serve(websocket.create_app(Feed())) as server:
        troubles = asyncio.create_task(_make_trouble(net, server.app))
        try:
            return await experiment(server, client, Schedule.poisson(1, 150, seed=5), clients=1, grace=90)
        finally:
            troubles.cancel()


async def _make_trouble(net: Net, app: Service) -> None:
    loop, begin, old = asyncio.get_running_loop(), asyncio.get_running_loop().time(), net.link

    async def at(second: float) -> None:
        await asyncio.sleep(begin + second - loop.time())

    await at(CUT)
    old.cut()
    await at(GOING)
    app.closing.close()
    await at(BACK)
    app.closing.open()
    await at(DARK)
    old.blackhole()
    net.link = Link(delay=DELAY)  # the way of every later connection: a phone that has left the house
    await at(OVER)
    old.cut()  # for a client that still believes in it


async def _refused(net: Net, client: Client) -> tuple[int, bool]:
    """How many handshakes a client makes in a minute where each is answered by 1008, and whether it has ended."""
    feed = Feed()
    app = Service("WebSocket", feed, path="/ws")

    @app.websocket("/ws")
    async def refuse(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close(websocket.POLICY_VIOLATION, "not like this")

    async with serve(app) as server:
        following = asyncio.ensure_future(client(server.url, ClientLog(0, feed.cursor)))
        ended, _ = await asyncio.wait({following}, timeout=60)
        following.cancel()
        await asyncio.wait({following}, timeout=60)
        if not following.cancelled():
            following.exception()  # seen
        return app.traffic.requests, bool(ended)
