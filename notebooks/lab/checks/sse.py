"""The checks of notebook 04: a parser of event streams, blocks, a client that resumes, and a server's loop."""

import asyncio
import inspect
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response

from lab.bench.experiment import ClientLog, ExperimentError, experiment
from lab.bench.result import Run
from lab.bench.schedule import Schedule
from lab.checks.verdict import STUB, Verdict, is_stub, tried
from lab.clients.event_stream import EventStreamParser
from lab.virtual import Link, Net, VirtualError, run_virtual, serve
from servers import sse
from servers.feed import Feed

Parsed = tuple[str, str, str]
Parse = Callable[[Iterable[bytes]], Iterable[Parsed]]

RULES: Sequence[tuple[bytes, str]] = (
    (b"data: x\n\ndata: y\n\n", "Each block with data is an event."),
    (b"data:x\n\n", "The space after the colon may be missing."),
    (b"data:  x \n\n", "Only one space after the colon is removed; the others belong to the value."),
    (b"data: a: b\n\n", "Only the first colon ends the name."),
    (b"data: x\ndata: y\n\n", "Several data lines of a block are one event, joined by newlines."),
    (b"event: a\ndata: x\n\ndata: y\n\n", "`event:` names the type of its own block only; the others are `message`."),
    (b"id: 7\ndata: x\n\ndata: y\n\n", "An id stays until another one comes."),
    (b"id: 7\ndata: x\n\nid\ndata: y\n\n", "An empty id takes the id back."),
    (b": x\n\nid: 7\n\nevent: a\n\n", "A block without data is no event: a comment, an id alone, a type alone."),
    (b"data\n\ndata:\ndata:\n\n", "A data field without a value is still data: an event with empty text."),
    (b"data: x\r\n\r\ndata: y\r\rdata", "Not only LF ends a line: CR and CRLF do, too."),
    (
        "data: x\u2028\x0by\n\n".encode(),
        "Nothing else ends a line; str.splitlines() knows more ends.",
    ),
    (b"data: x\n\ndata: y\n", "A block that the stream leaves unfinished never happened."),
    (b"\xef\xbb\xbfdata: x\n\n", "A byte order mark at the beginning is dropped."),
    (b"data: caf\xe9\n\n", "Bytes that are not UTF-8 become replacement characters; they do not stop the stream."),
    (b"id: 7\nid: 8\0\ndata: x\n\n", "An id with a NUL in it is ignored."),
)
CUTS: Sequence[tuple[bytes, str]] = (
    (b"data: x\n\ndata: y\n\n", "a line that a chunk leaves unfinished goes on in the next one, so keep it."),
    ("data: 猫 🦉\n\n".encode(), "a chunk may end in the middle of a character: decode whole lines, or incrementally."),
    (b"data: x\r\ndata: y\r\n\r\n", "a CR at the end of one chunk and an LF in the next are one end of line."),
    (b"data: x\rdata: y\r\r", "a CR at the end of a chunk has ended its line already."),
)


def event_stream_parser(parse: Parse) -> Verdict:
    """Exercise: `parse(chunks)` gives (type, data, last event id) for each event, in any chunking of the bytes."""
    if is_stub(parse):
        return STUB
    for stream, rule in RULES:
        given, right = tried(_parsed, (parse, [stream])), _standard(stream)
        if isinstance(given, Exception):
            return Verdict(False, f"For {stream!r} it raised {type(given).__name__}: {given}. {rule}")
        if given != right:
            return Verdict(False, f"{rule} {stream!r} gives {given}, and should give {right}.")
    for stream, rule in CUTS:
        right = _standard(stream)
        chunkings = [[stream[:cut], stream[cut:]] for cut in range(len(stream) + 1)]
        for chunks in [*chunkings, [bytes([byte]) for byte in stream]]:
            if tried(_parsed, (parse, chunks)) != right:
                where = f"{chunks[0]!r}, then {chunks[1]!r}" if len(chunks) == 2 else "single bytes"
                return Verdict(False, f"Right in one piece, wrong in chunks ({where}): {rule}")
    return Verdict(True, f"{len(RULES)} rules of the standard, and every way to cut a stream.")


def _parsed(parse: Parse, chunks: Iterable[bytes]) -> list[Parsed]:
    return [(event[0], event[1], event[2]) for event in parse(chunks)]


def _standard(stream: bytes) -> list[Parsed]:
    return [(event.type, event.data, event.last_event_id) for event in EventStreamParser().feed(stream)]


def event_block(block: Callable[[str, str, str], str]) -> Verdict:
    """Exercise: `block(type, id, data)` gives a block's text; ValueError for a type or id that cannot be sent."""
    if is_stub(block):
        return STUB
    rules = {
        "x": "",
        "": "Empty data is data: it takes a `data:` line.",
        "a\nb": "A newline in the data ends the field: each line of the data needs a `data:` of its own.",
        "a\n\nid: 9": "Data with a blank line in it forged a block: each line needs a `data:`.",
        "a\rid: 9": "A CR ends a line, too: data with one in it forged a field.",
        "a\n": "The last newline of the data is lost: str.splitlines() drops it.",
        "a\u2028b": "str.splitlines() splits where a parser does not, at U+2028 for one.",
        "  a": "A parser takes one space after the colon away; without one of yours, the data's own goes.",
    }
    for data, rule in rules.items():
        text = tried(block, ("update", "e-7", data))
        if not isinstance(text, str):
            return Verdict(False, f"For data {data!r} it should give a text, and gives {text!r}.")
        if not text.endswith("\n\n"):
            return Verdict(False, "A block ends with a blank line; without one it waits for the next block.")
        wanted = [("update", re.sub("\r\n?", "\n", data), "e-7")]
        if (got := _standard(text.encode())) != wanted:
            return Verdict(False, f"{rule} A client gets {got} for data {data!r}.".strip())
    for kind, name in (("a\ndata: x", "1"), ("a\r", "1"), ("a", "1\n\ndata: x"), ("a", "1\0"), ("a", "1\rid: 2")):
        if not isinstance(tried(block, (kind, name, "x")), ValueError):
            return Verdict(False, f"Type {kind!r} with id {name!r} cannot be sent, and should be a ValueError.")
    return Verdict(True, "Whatever the data is, the client gets it, and nobody forges a field.")


# A client on trial. One update each half second; the server keeps KEPT of them, and asks for a pause of 2 s.

KEPT = 20
EDITS = Schedule.periodic(0.5, 60.0, phase=0.25, seed=4)
IN_A_BLOCK, CUT, OUTAGE, BACK = 12, 30, 60, 90  # updates published when each thing happens

Relist = Callable[[], Awaitable[None]]
Client = Callable[[str, ClientLog, Relist], Awaitable[None]]


@dataclass
class _Ordeal:
    """What the server saw: the Last-Event-ID of each request, the requests it refused; and who listed again."""

    asked: list[str | None] = field(default_factory=list)
    head: int = 0  # of the log, at the last request
    refused: int = 0
    relisted: list[int] = field(default_factory=list)  # the log's head at each relist()
    torn: int = 0  # the update that was cut in the middle


def sse_client(client: Client) -> Verdict:
    """Exercise: `client(url, log, relist)` follows /events through cuts, refusals and a history that is too short."""
    if is_stub(client):
        return STUB
    ordeal = _Ordeal()
    try:
        run = run_virtual(lambda net: _conduct(net, client, ordeal), link=Link(delay=0.025), wall=20.0)
    except ExperimentError as problem:
        return Verdict(False, _explained(str(problem)))
    except VirtualError:
        return Verdict(False, "It never lets the clock go on: does it try again without a pause?")
    later = ordeal.asked[1:]
    gone = range(OUTAGE + 1, ordeal.head + 1)  # what only the list can tell
    lost = {update.seq for update in run.published} - {seq for _, seq in run.first_deliveries}
    if run.lost == run.expected:
        return Verdict(False, "Nothing was delivered: an event of type `update` has the update's JSON as its data.")
    if not later:
        return Verdict(False, "It never came back after the cut: what ends its loop?")
    if ordeal.refused > 40:
        return Verdict(False, f"{ordeal.refused} requests in 15 s of 503: wait as long as `retry` said, 2 s.")
    if not any(later):
        return Verdict(False, "It reconnects without Last-Event-ID: each time, what fell into the pause is lost.")
    if len(set(later)) == 1 and run.duplicated:
        return Verdict(False, f"{run.duplicated} updates came again: its Last-Event-ID is always {later[0]!r}.")
    if run.duplicated:
        return Verdict(False, f"{run.duplicated} updates came again: which id does it send after a cut?")
    if ordeal.torn in lost:
        text = (
            "The update whose block was cut in the middle is lost: its id was kept before the event had been handled."
        )
        return Verdict(False, text)
    if BACK + 1 in lost and run.all_requests[-1].end < run.schedule.seconds:
        return Verdict(False, "It gave up at the 503, as a browser does; nothing after it arrived.")
    if early := lost - set(gone):
        return Verdict(False, f"{len(early)} updates were lost that the server would have sent again: {sorted(early)}.")
    if not ordeal.relisted:
        return Verdict(False, "The server said `event: reset`, and the client went on as if nothing had been lost.")
    if len(ordeal.relisted) > 1:
        return Verdict(False, f"It listed again {len(ordeal.relisted)} times; only the reset calls for it, once.")
    return Verdict(True, f"{run.deliveries} updates, each once; for the {len(lost)} that were gone it listed again.")


def _explained(problem: str) -> str:
    if "no request" in problem:
        return "It made no request inside `with log.request():`, so nothing can be counted."
    if "counted less" in problem:
        return "It says `log.request()`, and does not ask for /events."
    if "JSON" in problem or "KeyError" in problem:
        return f"It took something for an update that is none: look at the event's type first. ({problem})"
    if "503" in problem or "SSEError" in problem or "text/event-stream" in problem:
        return f"It stopped at the 503, which passes: try again after a pause. ({problem})"
    if "Protocol" in problem or "Read" in problem or "Connect" in problem:
        return f"It stopped when the link was cut: catch `httpx.TransportError`, and ask again. ({problem})"
    return f"It stopped: {problem}."


async def _conduct(net: Net, client: Client, ordeal: _Ordeal) -> Run:
    feed = Feed(history=KEPT, epoch="exam")
    app = sse.create_app(feed)
    away = False

    @app.middleware("http")
    async def gateway(request: Request, call_next: Callable[[Request], Any]) -> Response:
        ordeal.asked.append(request.headers.get("last-event-id"))
        ordeal.head = feed.head
        if away:
            ordeal.refused += 1
            if ordeal.refused > 100:
                await asyncio.sleep(0.5)  # who asks so often is slowed down, to keep the check short
            return Response(status_code=503)
        response: Response = await call_next(request)
        return response

    async def relist() -> None:
        ordeal.relisted.append(feed.head)

    async def mischief() -> None:
        nonlocal away
        await _until(lambda: feed.head >= IN_A_BLOCK)
        ordeal.torn = IN_A_BLOCK + 1
        cursor = feed.cursor_at(ordeal.torn)
        await asyncio.sleep(0.2)  # the last update has arrived, the next is not published yet
        net.link.cut_after(len(f"d4\r\nevent: update\nid: {cursor}\ndata: "))
        await _until(lambda: feed.head >= CUT)
        net.link.cut()
        await _until(lambda: feed.head >= OUTAGE)
        await asyncio.sleep(0.2)
        away = True
        net.link.cut()
        await _until(lambda: feed.head >= BACK)
        away = False

    async with serve(app) as server:
        doing = asyncio.create_task(mischief())
        try:
            return await experiment(server, lambda url, log: client(url, log, relist), EDITS, clients=1, grace=5.0)
        finally:
            doing.cancel()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # in virtual time, where looking costs nothing
        await asyncio.sleep(0.01)


# A server's loop on trial.

HEARTBEAT = 10.0  # s
RESTLESS = 1000  # looks into the log within a minute in which it changes five times
RACE = "it was published while a block was being written. Look again before waiting: news() counts from the call on."


class Journal:
    """A log as the exercise sees it: numbers from 1, a text each."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._readers: list[asyncio.Future[None]] = []
        self._looks = 0

    def after(self, position: int) -> list[tuple[int, str]]:
        """All (number, text) later than a position."""
        self._looks += 1
        if self._looks > RESTLESS:
            raise VirtualError
        return list(enumerate(self.texts, 1))[position:]

    def news(self) -> asyncio.Future[None]:
        """A future that is done at the next publication; one from before does not count."""
        reader = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        return reader

    def publish(self, text: str) -> None:
        """Append a text, and tell who waits."""
        self.texts.append(text)
        readers, self._readers = self._readers, []
        for reader in readers:
            if not reader.done():
                reader.set_result(None)


Loop = Callable[[Journal, int, float], AsyncGenerator[str, None]]


def event_generator(stream: Loop) -> Verdict:
    """Exercise: `stream(journal, position, heartbeat)` yields a block for each update, and comments in silence."""
    if is_stub(stream):
        return STUB
    if not inspect.isasyncgenfunction(stream):
        return Verdict(False, "It is no async generator: `async def`, with a `yield` in it.")
    try:
        return run_virtual(lambda net: _listen(stream), limit=300.0, wall=10.0)
    except VirtualError:
        return Verdict(False, "It never waits: without news it should sleep until `journal.news()` or the heartbeat.")
    except Exception as error:
        return Verdict(False, f"It raised {type(error).__name__}: {error}.")


async def _listen(stream: Loop) -> Verdict:
    """Read a loop's blocks as a client that needs 0.2 s for each; publish meanwhile, then nothing for 45 s."""
    loop = asyncio.get_running_loop()
    journal = Journal()
    for number in range(5):
        journal.publish(f"text {number + 1}")
    published, came, parser = dict.fromkeys(range(3, 6), 0.0), list[tuple[int, float]](), EventStreamParser()
    beats, last = list[float](), 0.0

    async def publish() -> None:
        for pause in (0.5, 9.7, 4.8, 0.05):  # the first while the client is busy with the backlog
            await asyncio.sleep(pause)
            published[len(journal.texts) + 1] = loop.time()
            journal.publish(f"text {len(journal.texts) + 1}")

    async def read() -> str:
        nonlocal last
        blocks = stream(journal, 2, HEARTBEAT)
        async for text in blocks:
            if not isinstance(text, str):
                return f"It yields {text!r}; a block is a text."
            silence, last = loop.time() - last, loop.time()
            if silence > HEARTBEAT + 0.5:
                return f"There was silence for {silence:.0f} s, and no heartbeat: a proxy would have cut the stream."
            found = parser.feed(text.encode())
            if len(found) != text.count("data:"):
                return f"{text!r} is not a block: `id: N`, `data: TEXT`, and a blank line."
            for event in found:
                if not re.fullmatch("[0-9]+", event.last_event_id) or event.data != f"text {event.last_event_id}":
                    return f"The client got {event.data!r} with id {event.last_event_id!r}: is the heartbeat a comment?"
                came.append((int(event.last_event_id), loop.time()))
            if not found:
                beats.append(loop.time())
                if len(beats) > 1 and beats[-1] - beats[-2] < HEARTBEAT / 2:
                    return "Two heartbeats came within half of one: it should be silent for `heartbeat` seconds first."
            await asyncio.sleep(0.2)
        return "It ended by itself; a stream lasts until the client leaves."

    publishing, reading = asyncio.create_task(publish()), asyncio.create_task(read())
    done, _ = await asyncio.wait({reading}, timeout=60.0)
    publishing.cancel()
    reading.cancel()
    await asyncio.wait({publishing, reading})
    if done:
        return Verdict(False, reading.result())
    return _judged(published, came, beats, loop.time() - last)


def _judged(published: dict[int, float], came: list[tuple[int, float]], beats: list[float], quiet: float) -> Verdict:
    numbers = [number for number, _ in came]
    if not numbers:
        return Verdict(False, "No update came at all.")
    if numbers[0] < 3:
        return Verdict(False, f"It began with number {numbers[0]}: the position was 2, so the next is 3.")
    if len(set(numbers)) < len(numbers):
        return Verdict(False, f"Some came twice ({numbers}): the position has to move with what was sent.")
    late = {number: at - published[number] for number, at in came if at - published[number] > 2.0}
    if missing := sorted(set(published) - set(numbers)):
        return Verdict(False, f"Number {missing[0]} never came: {RACE}")
    if late:
        number, delay = next(iter(late.items()))
        return Verdict(False, f"Number {number} came {delay:.0f} s late: {RACE}")
    if not beats or quiet > HEARTBEAT + 0.5:
        return Verdict(False, "In 40 s of silence there was no heartbeat: a proxy would have cut the stream.")
    return Verdict(True, f"{len(numbers)} updates, each once and at once, and {len(beats)} heartbeats in the silence.")
