"""The checks of notebook 03: right answers pass, however unusual, and wrong ones are told what is wrong."""

import asyncio
import contextlib
import functools
import itertools
import json
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import websockets
from websockets.utils import apply_mask

from lab import checks, clients
from lab.bench.experiment import ClientLog
from lab.checks.websocket import FRAME_MISTAKES, KEY, fault, tried_out
from lab.theory.framing import frame
from tests.support_checks import Answer, Corpus, judging

FATAL = (1002, 1003, 1007, 1008, 1009, 1010)


def stub(text: str, key: bytes) -> Any:
    """The exercise's empty function."""


async def stub_client(url: str, log: ClientLog) -> None: ...


# ── a client's frame ─────────────────────────────────────────────────────────────────────────────────────────────────


def header(size: int) -> bytes:
    if size <= 125:
        return struct.pack("!BB", 0x81, 128 + size)
    return struct.pack("!BBH", 0x81, 254, size) if size < 2**16 else struct.pack("!BBQ", 0x81, 255, size)


def by_numpy(text: str, key: bytes) -> Any:
    payload = np.frombuffer(text.encode(), np.uint8)
    masked = payload ^ np.resize(np.frombuffer(key, np.uint8), payload.size)
    return np.concatenate([np.frombuffer(header(payload.size) + key, np.uint8), masked])


def by_one_big_number(text: str, key: bytes) -> bytes:
    payload = text.encode()
    size = len(payload)
    mask = (key * (size // 4 + 1))[:size]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")
    return header(size) + key + number.to_bytes(size, "big")


def by_a_growing_array(text: str, key: bytes) -> bytearray:
    answer = bytearray(header(len(text.encode())))
    answer += key
    for byte, k in zip(text.encode(), itertools.cycle(key), strict=False):
        answer.append(byte ^ k)
    return answer


def by_the_library(text: str, key: bytes) -> bytes:
    payload = text.encode()
    return header(len(payload)) + key + apply_mask(payload, key)


def by_bits(text: str, key: bytes) -> bytes:
    size = len(text.encode())
    length = f"{size:07b}" if size < 126 else f"{126:07b}{size:016b}" if size < 65536 else f"{127:07b}{size:064b}"
    bits = "1000" + "0001" + "1" + length
    first = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return first + key + bytes(a ^ b for a, b in zip(text.encode(), key * len(text.encode()), strict=False))


class Framer:
    """An object that can be called."""

    def __call__(self, text: str, key: bytes) -> memoryview:
        return memoryview(frame(text.encode(), key))


def with_an_option(opcode: int, text: str, key: bytes) -> bytes:
    return frame(text.encode(), key, opcode=opcode)


def short_only(text: str, key: bytes) -> bytes:
    """A frame that knows only lengths of 7 bits."""
    return bytes([0x81, 128 | len(text.encode())]) + frame(text.encode(), key)[2:]


def short_or_nothing(text: str, key: bytes) -> bytes:
    """The same, but adding where the other sets a bit."""
    return bytes([0x81, 128 + len(text.encode())]) + frame(text.encode(), key)[2:]


def never_ends(text: str, key: bytes) -> bytes:
    while True:
        pass


async def an_async_def(text: str, key: bytes) -> bytes:
    return frame(text.encode(), key)


def reversed_late(text: str, key: bytes) -> bytes:
    """Right for whatever is shorter than 64 KiB."""
    right = frame(text.encode(), key)
    return right if len(text) < 65_536 else right[:2] + right[2:10][::-1] + right[10:]


FRAMES = Corpus(
    checks.client_frame,
    stub,
    right={
        "the standard's": lambda text, key: frame(text.encode(), key),
        "numpy's array": by_numpy,
        "one big number": by_one_big_number,
        "a bytearray": by_a_growing_array,
        "the library's mask": by_the_library,
        "bits written out": by_bits,
        "a memoryview, by an object": Framer(),
        "a partial": functools.partial(with_an_option, 1),
        "from parts": lambda text, key: b"".join(piece for piece in (by_bits(text, key)[:1], by_bits(text, key)[1:])),
    },
    wrong={
        **{mistake[:45]: (encoder, mistake) for mistake, encoder in FRAME_MISTAKES.items()},
        "7 bits only": (
            short_only,
            "byte 1 (mask bit and length) is 0xc8, and should be 0xfe: such a length needs the longer",
        ),
        "7 bits, adding": (
            short_or_nothing,
            "For a text of 200 bytes it fails: such a length needs the longer field. It raised Val",
        ),
        "ASCII": (
            lambda text, key: frame(text.encode("ascii"), key),
            "For a text of 200 bytes it fails. It raised UnicodeEncodeError",
        ),
        "one byte": (lambda text, key: b"\x81", "For a text of 5 bytes byte 1 (mask bit and length) is missing"),
        "the text": (lambda text, key: text, "it gives str, and should give bytes"),
        "a list": (lambda text, key: list(frame(text.encode(), key)), "it gives list, and should give bytes"),
        "nothing": (lambda text, key: print(end=text[:0]), "it gives None: is there a `return`?"),
        "more behind": (lambda text, key: frame(text.encode(), key) + b"!", "it gives 12, and should give 11"),
        "the standard's key": (lambda text, key: frame(text.encode(), KEY), "masks with a key of its own, 37 fa 21 3d"),
        "the key reversed": (
            lambda text, key: frame(text.encode(), key[::-1]),
            "a key of its own, 3d 21 fa 37, and was given 37",
        ),
        "the standard's example": (
            lambda text, key: frame(b"Hello", KEY),
            "byte 1 (mask bit and length) is 0x85, and should be 0x80",
        ),
        "a slip": (lambda text, key: text[9], "IndexError: string index out of range"),
        "endless": (never_ends, "does not come to an end"),
        "async": (an_async_def, "async def"),
        "no mask on the long": (reversed_late, "For a text of 65536 bytes byte 4 (longer length) is 0x01"),
    },
)


# ── a robust client ──────────────────────────────────────────────────────────────────────────────────────────────────


def address_of(url: str, after: str | None) -> str:
    return f"{url.replace('http', 'ws', 1)}/ws" + (f"?after={after}" if after is not None else "")


def at_once(log: ClientLog, updates: list[Any]) -> None:
    for update in updates:
        log.deliver(update)


def but_once() -> Callable[[ClientLog, list[Any]], None]:
    """Hands over what it has not handed over yet."""

    def deliver(log: ClientLog, updates: list[Any]) -> None:
        known = {seq for seq, _ in log.deliveries}
        at_once(log, [update for update in updates if update["seq"] not in known])

    return deliver


def follower(
    *,
    cursor: Callable[[str, str], str | None] = lambda first, last: last,
    pause: float = 1.0,
    growth: float = 1.0,  # of the pause, with each end, never back
    heartbeat: float | None = 15.0,
    fatal: tuple[int, ...] = FATAL,
    lives_on: bool = True,
    quiet_end: bool = False,
    says_so: bool = True,
    waits: bool = False,
    tries: float = float("inf"),
    address: Callable[[str, str | None], str] = address_of,
    moves: Callable[[dict[str, Any], int], bool] = lambda message, number: True,
    delivers: Callable[[ClientLog, list[Any]], None] = at_once,
    slip: str = "",
    ends_itself: float | None = None,
) -> Callable[[str, ClientLog], Any]:
    """The solution, or one of its mutants."""

    async def connection(to: str, log: ClientLog, move: Callable[[str], None]) -> None:
        options: dict[str, Any] = {"ping_interval": heartbeat, "ping_timeout": heartbeat, "close_timeout": 1}
        async with websockets.connect(to, proxy=None, **options) as socket:
            for number in itertools.count():
                try:
                    async with asyncio.timeout(ends_itself):
                        message = json.loads(await socket.recv())
                except TimeoutError:
                    return
                delivers(log, message["updates"] if slip == "updates" else message.get("updates", []))
                if moves(message, number):
                    move(message["cursor"])

    async def client(url: str, log: ClientLog) -> None:
        last, ends = log.cursor, 0

        def move(to: str) -> None:
            nonlocal last
            last = to

        while ends < tries:
            to = address(url, cursor(log.cursor, last))
            try:
                with log.request() if says_so else contextlib.nullcontext():
                    await connection(to, log, move)
            except websockets.ConnectionClosed as closed:
                if slip == "rcvd":
                    print(end=str(closed.rcvd.code)[:0])  # type: ignore[union-attr]  # that is the slip
                if slip == "name" and closed.rcvd and closed.rcvd.code == 1008:
                    raise TypeError("ConnectionClosedError() takes no arguments") from None
                if not lives_on or (closed.rcvd and closed.rcvd.code in fatal):
                    raise
                if quiet_end and isinstance(closed, websockets.ConnectionClosedOK):
                    return
                if waits and closed.rcvd and closed.rcvd.code == 1008:
                    await asyncio.Event().wait()
            except (OSError, websockets.InvalidHandshake, websockets.InvalidURI):
                pass
            await asyncio.sleep(pause * growth**ends * log.rng.uniform(0.5, 1.0))
            ends += 1

    return client


async def robust(url: str, log: ClientLog) -> None:
    """The course's own client."""
    stream = clients.websocket(url, log.cursor, retry=clients.Retry(rng=log.rng), log=log)
    async with contextlib.aclosing(stream):
        async for news in stream:
            assert isinstance(news, clients.Update)
            log.deliver({"seq": news.seq})


async def by_silence(url: str, log: ClientLog) -> None:
    """No pings: what is silent for long enough is taken for dead; and 1008 is no exception."""
    last, failures = log.cursor, 0
    while True:
        with log.request():
            try:
                to = address_of(url, last)
                async with websockets.connect(to, proxy=None, ping_interval=None, close_timeout=0) as socket:
                    while True:
                        message = json.loads(await asyncio.wait_for(socket.recv(), 20))
                        last, failures = message["cursor"], 0
                        at_once(log, message.get("updates", []))
            except websockets.ConnectionClosed:
                if socket.close_code == 1008:
                    return
            except (OSError, websockets.WebSocketException):
                pass
        failures += 1
        await asyncio.sleep(min(20, 0.5 * 2**failures))


async def by_the_librarys_loop(url: str, log: ClientLog) -> None:
    """`async for socket in connect(...)` connects again by itself, here once each time round."""
    last = log.cursor
    while True:
        with log.request(), contextlib.suppress(OSError, websockets.InvalidHandshake):
            async with websockets.connect(address_of(url, last), proxy=None) as socket:
                try:
                    async for text in socket:
                        match json.loads(text):
                            case {"type": "updates", "updates": updates, "cursor": last}:
                                for update in updates:
                                    log.deliver(update)
                            case {"cursor": last}:
                                pass
                except websockets.ConnectionClosedError as closed:
                    if closed.rcvd is not None and closed.rcvd.code == 1008:
                        raise RuntimeError("refused") from closed
        await asyncio.sleep(5)


class Remembering:
    """A client that is an object, and makes the cursor itself out of what it has got."""

    async def __call__(self, url: str, log: ClientLog) -> None:
        epoch, _, seq = log.cursor.rpartition("-")
        newest = int(seq)
        while True:
            try:
                with log.request():
                    async with websockets.connect(address_of(url, f"{epoch}-{newest}"), proxy=None) as socket:
                        while True:
                            for update in json.loads(await socket.recv()).get("updates", []):
                                log.deliver(update)
                                newest = update["seq"]
            except (websockets.ConnectionClosed, OSError) as error:
                if isinstance(error, websockets.ConnectionClosed) and error.rcvd and error.rcvd.code == 1008:
                    raise
            await asyncio.sleep(3)


async def optioned(pause: float, url: str, log: ClientLog) -> None:
    await follower(pause=pause)(url, log)


async def with_tasks(url: str, log: ClientLog) -> None:
    """A reader and a queue: what is read is handed over by another task, at once."""
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def hand_over() -> None:
        while True:
            log.deliver(await queue.get())

    def enqueue(_: ClientLog, updates: list[Any]) -> None:
        for update in updates:
            queue.put_nowait(update)

    handing = asyncio.create_task(hand_over())
    try:
        await follower(delivers=enqueue)(url, log)
    finally:
        handing.cancel()


async def one_request_and_no_pause(url: str, log: ClientLog) -> None:
    """Starts from `listen` as it stands: everything inside one request, and around it no pause."""
    last = log.cursor
    with log.request():
        while True:
            with contextlib.suppress(OSError, websockets.InvalidHandshake):
                async with websockets.connect(address_of(url, last), proxy=None) as socket:
                    try:
                        while True:
                            message = json.loads(await socket.recv())
                            last = message["cursor"]
                            for update in message.get("updates", []):
                                log.deliver(update)
                    except websockets.ConnectionClosed as closed:
                        if closed.rcvd and closed.rcvd.code == 1008:
                            raise


async def one_request(url: str, log: ClientLog) -> None:
    """The same with a pause."""
    with log.request():
        await follower(says_so=False)(url, log)


async def guesses(url: str, log: ClientLog) -> None:
    """Hands over what it expects, and asks nobody."""
    with log.request():
        async with websockets.connect(address_of(url, log.cursor), proxy=None):
            for seq in range(1, 200):
                await asyncio.sleep(0.9)
                log.deliver({"seq": seq})


async def blocks(url: str, log: ClientLog) -> None:
    with contextlib.suppress(websockets.ConnectionClosed):
        await follower(lives_on=False)(url, log)
    time.sleep(1)  # noqa: ASYNC251  # that is the mistake


async def spins(url: str, log: ClientLog) -> None:
    with contextlib.suppress(websockets.ConnectionClosed):
        await follower(lives_on=False)(url, log)
    while True:
        pass


def not_async(url: str, log: ClientLog) -> None:
    with log.request():
        pass


def one_late() -> Callable[[ClientLog, list[Any]], None]:
    """Hands over each update when the next has come."""
    held: list[Any] = []

    def deliver(log: ClientLog, updates: list[Any]) -> None:
        held.extend(updates)
        while len(held) > 1:
            log.deliver(held.pop(0))

    return deliver


def twice(log: ClientLog, updates: list[Any]) -> None:
    for update in updates:
        log.deliver(update)
        log.deliver(update)


def backwards(log: ClientLog, updates: list[Any]) -> None:
    for update in reversed(updates):
        log.deliver(update)


def only_the_last(log: ClientLog, updates: list[Any]) -> None:
    for update in updates[-1:]:
        log.deliver(update)


CLIENTS = Corpus(
    checks.websocket_client,
    stub_client,
    right={
        "the solution": follower(),
        "a longer pause": follower(pause=5.0),
        "pauses that grow to half a minute": follower(pause=0.5, growth=1.2),
        "the library's own heartbeat": follower(heartbeat=20.0),
        "lab.clients": robust,
        "silence instead of pings, and a return": by_silence,
        "async for": by_the_librarys_loop,
        "an object with a cursor of its own making": Remembering(),
        "a partial": functools.partial(optioned, 2.0),
        "a queue and a task": with_tasks,
        "1000 only is quiet": follower(fatal=(1000, 1008)),
        "the cursor from updates only": follower(moves=lambda message, _: message["type"] == "updates"),
    },
    wrong={
        "no cursor": (follower(cursor=lambda first, last: None), "must begin at the last cursor"),
        "the first cursor": (follower(cursor=lambda first, last: first), "came again: the cursor must move"),
        "always 0": (follower(cursor=lambda first, last: "0"), "came again: the cursor must move"),
        "the cursor of hello": (follower(moves=lambda message, n: n == 0), "came again: the cursor must move"),
        "a time as cursor": (
            follower(cursor=lambda first, last: "1700000000.5"),
            "The server refused the cursor '1700",
        ),
        "no pause": (follower(pause=0.0), "while the server was going (1001): pause before you come back"),
        "an hour": (follower(pause=3600.0), "it did not come back in 225 s: is its pause too long?"),
        "drops what comes again": (
            follower(cursor=lambda first, last: first, delivers=but_once()),
            "brings everything again, which is then dropped",
        ),
        "a tenth of a second": (follower(pause=0.1), "handshakes in 15 s while the server was going"),
        "no pause in one request": (one_request_and_no_pause, "while the server was going (1001): pause before"),
        "one request": (one_request, "but 1 request in the log: `with log.request():` belongs around each connection"),
        "no heartbeat": (follower(heartbeat=None), "no heartbeat noticed"),
        "a heartbeat of a minute": (follower(heartbeat=60.0), "no heartbeat noticed"),
        "a pause that never shrinks": (follower(growth=2.0), "let pauses grow with failures in a row only"),
        "ends at the cut": (follower(lives_on=False), "must not end the client: catch it, pause, connect again"),
        "swallows the cut": (follower(tries=1), "It ended when the connection was cut (1006)"),
        "gives up": (follower(tries=3), "It gave up after 1 more handshake while the server was going"),
        "ends at 1001": (follower(quiet_end=True), "`async for` ends quietly then"),
        "ends when all is well": (follower(ends_itself=0.5, tries=1), "when nothing was wrong: is there a loop"),
        "polls by handshakes": (follower(ends_itself=0.05), "that is polling, by handshakes"),
        "comes back after 1008": (follower(fatal=()), "after 1008: what it does is against the rules"),
        "waits after 1008": (follower(fatal=(), waits=True), "neither ended nor came back"),
        "a slip at 1008": (follower(slip="name"), "it stopped, but not on purpose. It raised TypeError"),
        "no log.request": (follower(says_so=False), "no request inside"),
        "http": (follower(address=lambda url, after: f"{url}/ws"), "does the address begin with `ws://`?"),
        "no path": (
            follower(address=lambda url, after: url.replace("http", "ws")),
            "It knocked at `/`, where nobody is",
        ),
        "rcvd is None": (follower(slip="rcvd"), "Where nobody has said goodbye (1006), `rcvd` is None."),
        "updates of hello": (follower(slip="updates"), "the first one is `hello`, which has a cursor"),
        "hands over nothing": (follower(delivers=lambda log, updates: None), "none was handed over"),
        "hands over twice": (follower(delivers=twice), "handed over more often than sent"),
        "hands over backwards": (follower(delivers=backwards), "handed over after a later one"),
        "only the last of each": (follower(delivers=only_the_last), "were sent, and not handed over"),
        "one late": (follower(delivers=one_late()), "after it had come: hand over each at once"),
        "guesses": (guesses, "before any message had brought it"),
        "time.sleep": (blocks, "`await asyncio.sleep(…)` instead"),
        "endless": (spins, "does not come to an end"),
        "no async": (not_async, "here an `async def` is asked for"),
    },
)

CORPORA = [FRAMES, CLIENTS]
test_right, test_wrong, test_no_answer = judging(CORPORA)


@pytest.mark.parametrize("answer", [follower(), robust], ids=["solution", "lab.clients"])
def test_the_evidence_is_what_the_server_saw(answer: Answer) -> None:
    """The witness notes every handshake and its end: the cut, the goings, and the path's death, which nobody saw."""
    evidence = tried_out(answer)
    assert fault(evidence) is None
    codes = [connection.code for connection in evidence.ours]
    assert codes[0] == 1006
    assert set(codes[1:-2]) == {1001}
    assert len(evidence.ours) == len(evidence.spans)
    assert all(connection.accepted for connection in evidence.ours)
