"""The checks of notebook 03: a frame as a client sends it, and a client that outlives every kind of end.

text, key ─▶ answer ─▶ bytes, compared with the right frame's, and with frames that have one mistake
client ─▶ a witness that notes each handshake, message and end ─▶ the real server, in trouble four times
              └─▶ the evidence, together with what the client's log says
"""

import asyncio
import json
import random
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import websockets
from fastapi import WebSocket
from starlette.types import ASGIApp, Receive, Scope, Send

from lab.bench.experiment import Client, ClientLog, ExperimentError, Span, experiment
from lab.bench.result import Run, count
from lab.bench.schedule import Schedule
from lab.checks.bounded import asked_for, bounded, explained, virtually
from lab.checks.verdict import Verdict, awaiting, judged, tried
from lab.theory import framing
from lab.virtual import Link, Net, serve
from servers import websocket
from servers.feed import Feed
from servers.service import Service

TEXTS = ("Hello", "", "a" * 125, "é" * 100, "a" * 126, "a" * 65535, "a" * 65536)
KEY = bytes.fromhex("37fa213d")  # of RFC 6455, section 5.7
KEYS = (KEY, *(random.Random("keys").randbytes(4) for _ in TEXTS[1:]))  # each text with one of its own

DELAY = 0.025  # s, one way
CUT, GOING, BACK, DARK, OVER = 15.0, 35.0, 50.0, 80.0, 200.0  # s of the client's trial
PROMPT = 0.5  # s from a message's arrival to its hand-over, at most
SHORTEST, LONGEST = 0.25, 35.0  # s of a pause: the mean one while the server is going, and any
ANEW = 8.0  # s of a pause after a connection that worked, unless all are that long
LATE = 60.0  # s: a dead link is noticed sooner
RESTLESS = 10  # connections that a client ends by itself, at most
ENOUGH = 400  # handshakes; whoever makes more gets no further answer
NO_FAREWELL = (None, 1005, 1006)  # codes that no close frame brought
FAILURES = (websockets.ConnectionClosed, websockets.InvalidHandshake, OSError)  # a connection's; OSError: timeouts too
SLIPS = (NameError, AttributeError, TypeError, LookupError)  # nobody raises these on purpose


# ── a client's frame ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Encoder:
    """A client's text frame, right or with one mistake in it."""

    first: int = 0x81  # FIN and the opcode of text
    mask: int = 0x80
    masks: bool = True
    sends_key: bool = True
    key_last: bool = False
    encoding: str = "utf-8"
    characters: bool = False  # counts these, not bytes
    counts_key: bool = False
    short: int = framing.SHORT
    medium: int = framing.MEDIUM
    little: bool = False

    def __call__(self, text: str, key: bytes) -> bytes:
        payload = text.encode(self.encoding)
        size = (len(text) if self.characters else len(payload)) + (4 if self.counts_key else 0)
        order: Any = "little" if self.little else "big"
        if size <= self.short:
            length = bytes([self.mask | size])
        elif size <= self.medium:
            length = bytes([self.mask | 126]) + size.to_bytes(2, order)
        else:
            length = bytes([self.mask | 127]) + size.to_bytes(8, order)
        if self.masks:
            payload = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
        sent = key if self.sends_key else b""
        return bytes([self.first]) + length + (payload + sent if self.key_last else sent + payload)


FRAME_MISTAKES: dict[str, Callable[[str, bytes], bytes]] = {
    "That is a server's frame: a client sets the mask bit, sends the key and masks (section 5.3).": (
        Encoder(mask=0, masks=False, sends_key=False)
    ),
    "The key is there, but the payload is not masked with it: byte n is XORed with key[n % 4].": Encoder(masks=False),
    "The payload is masked, but the mask bit says that it is not: the second byte begins with a 1.": Encoder(mask=0),
    "The payload is masked, but the key is missing: nobody can read it.": Encoder(sends_key=False),
    "The key comes last; it must stand before the payload, or nobody can read that as it comes.": Encoder(
        key_last=True
    ),
    "The text is encoded as Latin-1; a text message is UTF-8, in which “é” has two bytes.": Encoder(encoding="latin-1"),
    "The length counts the key; it must count the payload alone.": Encoder(counts_key=True),
    "The length is little-endian; on the wire the high byte comes first (“network byte order”).": Encoder(little=True),
    "The length counts characters; it must count the bytes of the UTF-8 text.": Encoder(characters=True),
    "126 does not fit into 7 bits: 126 and 127 are the signs for a longer length field.": Encoder(short=126),
    "FIN is missing: this message never ends. The first byte of a whole text is 0x81.": Encoder(first=0x01),
    "That is a binary message, opcode 2; text is opcode 1.": Encoder(first=0x82),
    "Each length has the shortest form that it fits into (section 5.2), and 126 needs only 16 bits.": (
        Encoder(medium=framing.SHORT)
    ),
}


@judged
def client_frame(function: Callable[[str, bytes], bytes]) -> Verdict:
    """Exercise: `client_frame(text, key)` gives the bytes of a client's text frame, masked with the four of `key`."""
    cases = list(zip(TEXTS, KEYS, strict=True))
    given = bounded(lambda: [tried(lambda text, key: _frozen(function(text, key)), case) for case in cases])
    right = [framing.frame(text.encode(), key) for text, key in cases]
    if given == right:
        return Verdict(True, "It is what a client sends, with 7, 16 and 64 bits of length.")
    for mistake, encoder in FRAME_MISTAKES.items():
        if given == [encoder(text, key) for text, key in cases]:
            return Verdict(False, mistake)
    case, got, wanted = next(entry for entry in zip(cases, given, right, strict=True) if entry[1] != entry[2])
    return Verdict(False, f"For a text of {len(case[0].encode())} bytes {_first_difference(*case, got, wanted)}")


def _frozen(answer: Any) -> Any:
    """An answer's bytes, whatever holds them: a bytearray, a memoryview, an array of numpy's."""
    try:
        return answer if isinstance(answer, str) else memoryview(answer).tobytes()
    except (TypeError, BufferError):
        return answer


def _first_difference(text: str, key: bytes, got: Any, wanted: bytes) -> str:
    size = len(text.encode())
    longer = ": such a length needs the longer field" if size > framing.SHORT else ""
    if isinstance(got, Exception):
        too_long = isinstance(got, (OverflowError, ValueError, struct.error)) and not isinstance(got, UnicodeError)
        return f"it fails{longer if too_long else ''}. {explained(got)}"
    if got is None:
        return "it gives None: is there a `return`?"
    if not isinstance(got, bytes):
        return f"it gives {type(got).__name__}, and should give bytes."
    own = got[len(wanted) - size - 4 : len(wanted) - size]
    if len(own) == 4 and own != key and got == framing.frame(text.encode(), own):
        return f"it masks with a key of its own, {own.hex(' ')}, and was given {key.hex(' ')}."
    place = next((n for n, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    if place == len(wanted):
        return f"it gives {len(got)}, and should give {len(wanted)}: what comes after the payload?"
    is_now = f"is 0x{got[place]:02x}" if place < len(got) else "is missing"
    hint = longer if place == 1 and place < len(got) and got[1] == (128 | size) & 255 != 255 else ""
    return f"byte {place} ({_part(place, wanted, size, key)}) {is_now}, and should be 0x{wanted[place]:02x}{hint}."


def _part(place: int, wanted: bytes, size: int, key: bytes) -> str:
    """What the byte at a place of the right frame is for."""
    if place < 2:
        return ("FIN and opcode", "mask bit and length")[place]
    begin = len(wanted) - size  # of the payload
    return "longer length" if place < begin - 4 else f"key {key.hex(' ')}" if place < begin else "masked payload"


# ── a robust client ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Connection:
    """A handshake as the server saw it, at `at` s: for which path and cursor; what was sent on it, and its end."""

    at: float
    path: str
    after: str | None
    accepted: bool = False
    cursor: str | None = None  # the last one sent
    sent: list[tuple[int, float]] = field(default_factory=list)  # seq, when (s)
    code: int | None = None  # of the close that either side said, or 1006 for none; None while open
    by_client: bool = False


@dataclass
class Evidence:
    """What the server saw, and what became of the client: its log, its run, when it ended (s), what it raised."""

    connections: list[Connection] = field(default_factory=list)
    log: ClientLog | None = None
    run: Run | None = None
    raised: BaseException | None = None
    begin: float = 0.0
    ended: float | None = None
    over: float = OVER  # when it ended, or was ended (s)

    @property
    def now(self) -> float:
        return time.perf_counter() - self.begin

    @property
    def ours(self) -> list[Connection]:
        """The connections to the right path."""
        return [connection for connection in self.connections if connection.path == "/ws"]

    @property
    def spans(self) -> list[Span]:
        return self.log.requests if self.log else []

    @property
    def deliveries(self) -> list[tuple[int, float]]:
        """What was handed over, and when (s)."""
        return [(seq, at - self.begin) for seq, at in self.log.deliveries] if self.log else []


class Witness:
    """A middleware that notes every WebSocket in the evidence, and answers none beyond ENOUGH."""

    def __init__(self, app: ASGIApp, evidence: Evidence) -> None:
        self.app, self.evidence = app, evidence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        asked = WebSocket(scope, receive, send)
        here = Connection(self.evidence.now, scope["path"], asked.query_params.get("after"))
        self.evidence.connections.append(here)
        if len(self.evidence.connections) >= ENOUGH:
            await asyncio.sleep(3600)

        async def heard() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "websocket.disconnect" and here.code is None:
                here.by_client = message.get("code") not in NO_FAREWELL
                here.code = message["code"] if here.by_client else 1006
            return message

        async def said(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "websocket.accept":
                here.accepted = True
            elif message["type"] == "websocket.close":
                here.code = here.code or message.get("code", 1000)
            elif text := message.get("text"):
                what = json.loads(text)
                here.cursor = what.get("cursor", here.cursor)
                here.sent += [(update["seq"], self.evidence.now) for update in what.get("updates", ())]
            await send(message)

        await self.app(scope, heard, said)


@judged
def websocket_client(client: Client) -> Verdict:
    """Exercise: `client(url, log)` follows by WebSocket, and outlives what ends a connection, as far as it should.

    In virtual time, on the real server: the connection is reset; the server goes (1001), and goes on doing so for a
    quarter of a minute; the path dies without a word while another one opens. On a second server that closes with 1008
    it must not come back.
    """
    evidence = tried_out(client)
    if wrong := fault(evidence):
        return Verdict(False, wrong)
    if wrong := _returns(client):
        return Verdict(False, wrong)
    assert evidence.run
    kept = count(evidence.run.expected, "update")
    return Verdict(True, f"All {kept} once, over {len(evidence.ours)} connections; and 1008 was the end of it.")


def tried_out(client: Client) -> Evidence:
    """The client on a server and a link in trouble, in virtual time."""
    evidence = Evidence()
    follows = awaiting(client)

    async def watched(url: str, log: ClientLog) -> None:
        evidence.log = log
        try:
            await follows(url, log)
            evidence.ended = evidence.now
        finally:
            evidence.over = evidence.now

    async def main(net: Net) -> Run:
        app = websocket.create_app(Feed())
        app.add_middleware(Witness, evidence=evidence)
        evidence.begin = time.perf_counter()
        async with serve(app) as server:
            troubles = asyncio.create_task(_make_trouble(net, app))
            try:
                return await experiment(server, watched, Schedule.poisson(1, 150, seed=5), clients=1, grace=90)
            finally:
                troubles.cancel()

    try:
        evidence.run = virtually(main, link=Link(delay=DELAY))
    except ExperimentError as problem:
        evidence.raised = problem
    return evidence


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


def fault(evidence: Evidence) -> str | None:
    """What is wrong with a client by this evidence, or nothing."""
    return (
        _never_arrives(evidence)
        or _restless(evidence)
        or _stops(evidence)
        or _counts_wrongly(evidence)
        or _hands_over_wrongly(evidence)
        or _deaf(evidence)
        or _delivers_wrongly(evidence)
    )


def _never_arrives(evidence: Evidence) -> str | None:
    """It reaches no server, or the wrong address, or with a cursor that is none."""
    if elsewhere := [connection.path for connection in evidence.connections if connection.path != "/ws"]:
        return (
            f"It knocked at `{elsewhere[0]}`, where nobody is: the address is `ws://…/ws`, with `?after=` and a cursor."
        )
    if refused := [c.after for c in evidence.ours if not c.accepted and c.code == websocket.POLICY_VIOLATION]:
        return (
            f"The server refused the cursor {refused[0]!r}: a cursor is opaque, send the one that came last as it is."
        )
    if not evidence.connections and len(evidence.spans) > 1:
        tries = len(evidence.spans)
        return f"It tried {tries} times, and nothing reached the server: does the address begin with `ws://`?"
    return None


def _restless(evidence: Evidence) -> str | None:
    """It comes back without a pause, or ends its connections itself."""
    going = [connection.at for connection in evidence.ours if GOING < connection.at < BACK]
    if len(going) > (BACK - GOING) / SHORTEST or len(evidence.connections) >= ENOUGH:
        often = f"{len(going)} handshakes in {BACK - GOING:.0f} s while the server was going (1001)"
        if len(going) < 2:
            often = f"{len(evidence.connections)} handshakes in {evidence.connections[-1].at:.0f} s"
        return f"{often}: pause before you come back, and for longer."
    quits = [connection for connection in evidence.ours if connection.by_client and not GOING < connection.at < BACK]
    if len(quits) > RESTLESS:
        return f"It ended {len(quits)} connections itself: that is polling, by handshakes. Stay, and wait for messages."
    return None


def _stops(evidence: Evidence) -> str | None:
    """It ended, or raised, before everything had come."""
    if evidence.raised:
        return _raised(evidence.raised)
    assert evidence.run
    if evidence.ended is None or not evidence.run.lost:
        return None
    if not evidence.ours:
        return "It ended without having connected."
    last, going = evidence.ours[-1], [c for c in evidence.ours if GOING < c.at < BACK]
    if evidence.ended < CUT:
        return f"It ended after {evidence.ended:.1f} s, when nothing was wrong: is there a loop that goes on reading?"
    if last.code == websocket.GOING_AWAY and going:
        more = count(len(going), "more handshake")
        return f"It gave up after {more} while the server was going (1001), and the server came back."
    if last.code == websocket.GOING_AWAY:
        return "It ended when the server went (1001): `async for` ends quietly then, and going is no reason to stop."
    if last.at < CUT <= evidence.ended < GOING:
        return "It ended when the connection was cut (1006): that says nothing about the server, so come back."
    if evidence.ended > DARK:
        return "It ended when the path had died: notice it, and come back by another one."
    return f"It ended after {evidence.ended:.0f} s, before everything had come."


def _raised(error: BaseException) -> str:
    error = asked_for(error)
    text = explained(error)
    if isinstance(error, ExperimentError) and "no request" in text:
        return "It made no request inside `with log.request():`, so nothing can be counted."
    if isinstance(error, FAILURES):
        return f"A connection that ends must not end the client: catch it, pause, connect again. {text}"
    if isinstance(error, AttributeError) and "'NoneType' object has no attribute" in text:
        return f"{text}\nWhere nobody has said goodbye (1006), `rcvd` is None."
    if isinstance(error, KeyError) and error.args == ("updates",):
        return f"{text}\nNot every message has updates: the first one is `hello`, which has a cursor."
    return text


def _counts_wrongly(evidence: Evidence) -> str | None:
    made, counted = len(evidence.ours), len(evidence.spans)
    if made > counted:
        requests = count(counted, "request")
        return f"{made} handshakes, but {requests} in the log: `with log.request():` belongs around each connection."
    return None


def _deaf(evidence: Evidence) -> str | None:
    """It believes in a dead link for too long, or stays away for too long."""
    ends = [(span.end or float("inf")) - evidence.begin for span in evidence.spans]
    starts = [span.start - evidence.begin for span in evidence.spans]
    for start, end in zip(starts, ends, strict=True):
        if start < DARK < end and min(end, OVER) - DARK > LATE:
            return (
                f"It was deaf for {min(end, OVER) - DARK:.0f} s: the path died unannounced, and no heartbeat noticed."
            )
    if ends and (missed := evidence.over - ends[-1]) > LONGEST:
        return f"After the end at {ends[-1]:.0f} s it did not come back in {missed:.0f} s: is its pause too long?"
    pauses = [(end, start - end) for end, start in zip(ends, starts[1:], strict=False)]
    for end, pause in pauses:
        if pause > LONGEST:
            return f"After the end at {end:.0f} s it stayed away for {pause:.0f} s: the longest pause is half a minute."
    worked = [pause for span, (_, pause) in zip(evidence.spans, pauses, strict=False) if span.updates]
    if worked and worked[-1] > max(ANEW, *(3 * pause for pause in worked[:-1]), 0):
        return (
            f"It stayed away for {worked[-1]:.0f} s from a server that had served it well: let pauses grow "
            "with failures in a row only, and begin anew after a connection that has brought something."
        )
    return None


def _hands_over_wrongly(evidence: Evidence) -> str | None:
    """What it hands over is not what comes, when it comes."""
    moments = [(seq, at) for connection in evidence.ours for seq, at in connection.sent]
    sent, came = Counter(seq for seq, _ in moments), Counter(seq for seq, _ in evidence.deliveries)
    if sent and not came:
        return f"{len(sent)} updates were sent, and none was handed over: `log.deliver(update)` for each."
    for seq, at in evidence.deliveries:
        before = [moment for number, moment in moments if number == seq and moment + DELAY <= at + 1e-6]
        if not before:
            return f"It handed over update {seq} before any message had brought it."
        if (late := at - max(before) - DELAY) > PROMPT:
            return f"Update {seq} was handed over {late:.1f} s after it had come: hand over each at once."
    if again := [seq for seq in came if came[seq] > sent[seq]]:
        return f"{count(len(again), 'update')} handed over more often than sent: `log.deliver(update)` once for each."
    return None


def _delivers_wrongly(evidence: Evidence) -> str | None:
    """Something is missing, comes again or in another order, and it was not asked for rightly."""
    run, sent = evidence.run, {seq for connection in evidence.ours for seq, _ in connection.sent}
    assert run
    returned = evidence.ours[1:]
    if run.duplicated:
        if returned and all(connection.after == evidence.ours[0].after for connection in returned):
            return f"{run.duplicated} updates came again: the cursor must move with every message."
        return f"{run.duplicated} updates came again: a new connection must begin at the last cursor."
    if run.lost:
        if any(connection.after is None for connection in returned):
            return f"{run.lost} of {run.expected} updates were lost: a new connection must begin at the last cursor."
        if skipped := [c for c in returned if c.sent and set(range(1, c.sent[0][0])) - sent]:
            return f"{run.lost} of {run.expected} updates were lost: {skipped[0].after!r} was not the last cursor."
        return f"{run.lost} of {run.expected} updates were sent, and not handed over: `log.deliver(update)` for each."
    if len(returned) > 2 and len({connection.after for connection in evidence.ours}) == 1:
        return (
            "Each connection brings everything again, which is then dropped: the cursor must move with every message."
        )
    if run.out_of_order:
        return f"{run.out_of_order} updates were handed over after a later one: keep the order in which they come."
    return None


def _returns(client: Client) -> str | None:
    """What is wrong with how a client takes 1008, on a server that says it to everybody, or nothing."""
    evidence = Evidence()
    follows = awaiting(client)

    async def main(net: Net) -> tuple[bool, BaseException | None]:
        feed = Feed()
        app = _strict(feed)
        app.add_middleware(Witness, evidence=evidence)
        evidence.begin = time.perf_counter()
        async with serve(app) as server:
            following = asyncio.ensure_future(_followed(follows, server.url, ClientLog(0, feed.cursor)))
            ended, _ = await asyncio.wait({following}, timeout=60)
            following.cancel()
            await asyncio.wait({following}, timeout=60)
            return bool(ended), None if following.cancelled() else following.exception()

    ended, error = virtually(main, link=Link(delay=DELAY))
    if len(evidence.connections) > 1:
        again = f"{len(evidence.connections) - 1} times in a minute"
        return f"It came back {again} after 1008: what it does is against the rules, so it must stop."
    if not ended:
        return "After 1008 it neither ended nor came back: raise, so that somebody learns of it."
    return (
        f"At the close with 1008 it stopped, but not on purpose. {explained(error)}"
        if isinstance(error, SLIPS)
        else None
    )


async def _followed(follows: Callable[..., Awaitable[Any]], url: str, log: ClientLog) -> None:
    await follows(url, log)


def _strict(feed: Feed) -> Service:
    """A server that lets everybody in and closes with 1008."""
    app = Service("WebSocket", feed, path="/ws")

    @app.websocket("/ws")
    async def refuse(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close(websocket.POLICY_VIOLATION, "not like this")

    return app
