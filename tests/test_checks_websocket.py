"""The checks of notebook 03: each accepts the solution, rejects the empty stub kindly, and names each mistake."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import websockets

from lab import checks
from lab.bench.experiment import ClientLog
from lab.checks.websocket import FRAME_MISTAKES
from lab.theory.framing import frame

FATAL = (1002, 1003, 1007, 1008, 1009, 1010)


def follower(
    *,
    cursor: Callable[[str, str], str | None] = lambda first, last: last,
    pause: float = 1.0,
    heartbeat: float | None = 15.0,
    fatal: tuple[int, ...] = FATAL,
    lives_on: bool = True,
    quiet_end: bool = False,
    says_so: bool = True,
    waits: bool = False,
) -> Callable[[str, ClientLog], Any]:
    """The solution, or one of its mutants."""

    async def connection(address: str, log: ClientLog, move: Callable[[str], None]) -> None:
        options: dict[str, Any] = {"ping_interval": heartbeat, "ping_timeout": heartbeat, "close_timeout": 1}
        async with websockets.connect(address, proxy=None, **options) as socket:
            while True:
                message = json.loads(await socket.recv())
                for update in message.get("updates", []):
                    log.deliver(update)
                move(message["cursor"])

    async def client(url: str, log: ClientLog) -> None:
        last = log.cursor

        def move(to: str) -> None:
            nonlocal last
            last = to

        while True:
            after = cursor(log.cursor, last)
            address = f"{url.replace('http', 'ws', 1)}/ws" + (f"?after={after}" if after is not None else "")
            try:
                if says_so:
                    with log.request():
                        await connection(address, log, move)
                else:
                    await connection(address, log, move)
            except websockets.ConnectionClosed as closed:
                if not lives_on or (closed.rcvd and closed.rcvd.code in fatal):
                    raise
                if quiet_end and isinstance(closed, websockets.ConnectionClosedOK):
                    return
                if waits and closed.rcvd and closed.rcvd.code == 1008:
                    await asyncio.Event().wait()
            except (OSError, websockets.InvalidHandshake):
                pass
            await asyncio.sleep(pause * log.rng.uniform(0.5, 1.0))

    return client


async def stub_client(url: str, log: ClientLog) -> None:
    """The exercise's empty client."""


def stub(*_: Any) -> Any:
    """An exercise's empty function."""


def test_an_untouched_stub_fails_kindly() -> None:
    """An empty function and an empty client do not pass, and are told what to do next."""
    for verdict in (checks.client_frame(stub), checks.websocket_client(stub_client)):
        assert repr(verdict).startswith("Not yet. This is still the empty stub")


def test_a_right_frame_passes() -> None:
    """The standard's frame, written in any way, passes."""
    assert checks.client_frame(lambda text, key: frame(text.encode(), key))


@pytest.mark.parametrize("mistake", FRAME_MISTAKES, ids=lambda mistake: mistake[:40])
def test_each_mistake_in_a_frame_is_named(mistake: str) -> None:
    """A frame with one mistake is rejected with the sentence about that mistake, and no other."""
    verdict = checks.client_frame(lambda text, key: FRAME_MISTAKES[mistake](text, key))
    assert not verdict
    assert verdict.text == mistake


def short_only(text: str, key: bytes) -> bytes:
    """A frame that knows only lengths of 7 bits."""
    return bytes([0x81, 128 | len(text.encode())]) + frame(text.encode(), key)[2:]


def short_or_nothing(text: str, key: bytes) -> bytes:
    """The same, but adding where the other sets a bit."""
    return bytes([0x81, 128 + len(text.encode())]) + frame(text.encode(), key)[2:]


OTHER_FRAMES: list[tuple[Callable[[str, bytes], Any], str]] = [
    (short_only, "byte 1 is 0xc8, and should be 0xfe: such a length needs the longer field."),
    (short_or_nothing, "For a text of 200 bytes it raised ValueError"),
    (lambda text, key: b"\x81", "For a text of 5 bytes, byte 1 is missing, and should be 0x85."),
    (lambda text, key: text, "it gives str, and should give bytes"),
    (lambda text, key: frame(text.encode(), key) + b"!", "it gives 12, and should give 11"),
    (lambda text, key: frame(text.encode(), key[::-1]), "byte 2 is 0x3d, and should be 0x37"),
    (lambda text, key: text[9], "For a text of 5 bytes it raised IndexError: string index out of range."),
]


@pytest.mark.parametrize(("mutant", "words"), OTHER_FRAMES, ids=[words for _, words in OTHER_FRAMES])
def test_an_unknown_mistake_in_a_frame_is_located(mutant: Callable[[str, bytes], Any], words: str) -> None:
    """What looks like no known mistake is rejected with the first place where it differs."""
    verdict = checks.client_frame(mutant)
    assert not verdict
    assert words in verdict.text


def test_a_robust_client_passes() -> None:
    """A client that resumes, pauses, listens for a heartbeat and obeys 1008 passes, with either pause."""
    for pause in (1.0, 5.0):
        verdict = checks.websocket_client(follower(pause=pause))
        assert verdict, repr(verdict)
        assert "and 1008 was the end of it" in verdict.text


def test_the_librarys_own_heartbeat_passes() -> None:
    """A client that leaves the library's heartbeat as it is notices a dead path in time."""
    assert checks.websocket_client(follower(heartbeat=20.0))


CLIENTS: list[tuple[Callable[[str, ClientLog], Any], str]] = [
    (follower(cursor=lambda first, last: None), "must begin at the last cursor"),
    (follower(cursor=lambda first, last: first), "came again: the cursor must move"),
    (follower(cursor=lambda first, last: "0"), "came again: the cursor must move"),
    (follower(pause=0.0), "comes back without a pause"),
    (follower(heartbeat=None), "no heartbeat noticed"),
    (follower(lives_on=False), "must not end the client: catch it, pause, connect again"),
    (follower(quiet_end=True), "`async for` ends quietly then"),
    (follower(fatal=()), "after 1008: what it does is against the rules"),
    (follower(fatal=(), waits=True), "neither ended nor came back"),
    (follower(says_so=False), "no request inside"),
]


@pytest.mark.parametrize(("mutant", "words"), CLIENTS, ids=[words for _, words in CLIENTS])
def test_each_mistake_of_a_client_is_named(mutant: Callable[[str, ClientLog], Any], words: str) -> None:
    """A client with one fault is rejected with a sentence about it."""
    verdict = checks.websocket_client(mutant)
    assert not verdict
    assert words in verdict.text
