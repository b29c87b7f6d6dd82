"""The checks of notebook 04: a parser of event streams, blocks, a client that resumes, and a server's loop.

parser, block ─▶ streams with one rule each, whole, cut, and without an end ─▶ the first rule that is broken
client        ─▶ a virtual minute and a half with cuts, an outage, a reset  ─▶ Ordeal, Run ─▶ what was lost, and why
server's loop ─▶ a slow reader, publications, silence                       ─▶ Heard ─▶ what came late, or too often
"""

import asyncio
import inspect
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import httpx
from fastapi import Request, Response
from httpx_sse import SSEError
from starlette.middleware.base import RequestResponseEndpoint

from lab.bench.experiment import ClientLog, ExperimentError, experiment
from lab.bench.result import Run
from lab.bench.schedule import Schedule
from lab.checks.bounded import Misfit, asked_for, bounded, explained, virtually
from lab.checks.values import shown
from lab.checks.verdict import Verdict, awaiting, judged
from lab.clients.event_stream import EventStreamParser
from lab.virtual import Link, Net, OutOfTime, serve
from servers import sse
from servers.feed import Feed

Parsed = tuple[str, str, str]
Parse = Callable[[Iterable[bytes]], Iterable[Parsed]]

# Of each stream: which rule is broken if this is the first one that comes out wrong.
RULES: Sequence[tuple[bytes, str]] = (
    (b"data: x\n\ndata: y\n\n", ""),
    (b"data: a: b\n\n", "Only the first colon ends the name."),
    (b"data:  x \n\n", "Only one space after the colon is removed; the others belong to the value."),
    (b"data: x\ndata: y\n\n", "Several data lines of a block are one event, joined by newlines."),
    (b"event: a\ndata: x\n\n", "`event:` names the type of its block."),
    (b"event: a\ndata: x\n\ndata: y\n\n", "A type belongs to its own block only; the others are `message`."),
    (b"id: 7\ndata: x\n\n", "`id:` gives the last event id."),
    (b"id: 7\ndata: x\n\ndata: y\n\n", "An id stays until another one comes."),
    (b"id: 7\ndata: x\n\nid\ndata: y\n\n", "An empty id takes the id back."),
    (b": x\n\nid: 7\n\nevent: a\n\n", "A block without data is no event: a comment, an id alone, a type alone."),
    (b"data: x\n: y\nfoo: z\ndata\n\n", "Comments and unknown fields do nothing; `data` alone is an empty line of it."),
    (b"data: x\nData: y\n\n", "Capital letters count: `Data` is an unknown field."),
    ("data: \xe9 \u2260 \u732b\n\n".encode(), "An event stream is UTF-8, and nothing else."),
    (b"data\n\ndata:\ndata:\n\n", "A data field without a value is still data: an event with empty text."),
    (b"data: x\r\ndata: y\r\n\r\n", "CRLF ends a line, too: both bytes together, once."),
    (b"data: x\r\rdata: y\r\rdata", "Not only LF ends a line: a CR alone does, too."),
    (b"data: x\r\r", "A CR has ended its line, whatever comes next: that may be hours away."),
    ("data: x\u2028\x0by\n\n".encode(), "Nothing else ends a line; str.splitlines() knows more ends."),
    (b"data: x\n\ndata: y\n", "A block that the stream leaves unfinished never happened."),
    (b"\xef\xbb\xbfdata: x\n\n", "A byte order mark at the beginning is dropped."),
    (b"data: caf\xe9\n\n", "Bytes that are not UTF-8 become replacement characters; they do not stop the stream."),
    (b"id: 7\nid: 8\0\ndata: x\n\n", "An id with a NUL in it is ignored."),
)
# The same in chunks: a stream, the places where a cut goes wrong if the rule is broken, and the rule.
LINE = "a line that a chunk leaves unfinished goes on in the next one, so keep it."
CUTS: Sequence[tuple[bytes, Collection[int], str]] = (
    (
        b"data: x\ndata: y\n\n",
        range(8, 17),
        "a block that a chunk leaves unfinished goes on in the next one, so keep it.",
    ),
    (b"data: x\n\ndata: y\n\n", range(99), LINE),
    (
        "data: 猫 🦉\n\n".encode(),
        (7, 8, 11, 12, 13),
        "a chunk may end in the middle of a character: decode whole lines, or incrementally.",
    ),
    (
        b"data: x\r\ndata: y\r\n\r\n",
        (8, 17, 19),
        "a CR at the end of one chunk and an LF in the next are one end of line.",
    ),
    (b"data: x\rdata: y\r\r", (8, 16), "a CR at the end of a chunk has ended its line already."),
)
SPACE = {
    b"data: x\n\n": "One space after the colon does not belong to the value.",
    b"data:x\n\n": "The space after the colon may be missing.",
}
PATIENCE = 1000  # chunks after an event's blank line; who has not given it by then waits for the end


@judged
def event_stream_parser(parse: Parse) -> Verdict:
    """Exercise: `parse(chunks)` gives (type, data, last event id) for each event, in any chunking of the bytes."""
    return bounded(lambda: _parser_judged(parse))


def _parser_judged(parse: Parse) -> Verdict:
    spaces = [(stream, rule) for stream, rule in SPACE.items() if _tried(parse, [stream]) != _standard(stream)]
    if len(spaces) > 1:  # it is not the space, then
        spaces = []
    for stream, rule in [*spaces, *RULES]:
        given, right = _tried(parse, [stream]), _standard(stream)
        if isinstance(given, Exception):
            return Verdict(False, f"For {stream!r}: {explained(given)}")
        if given != right:
            return Verdict(False, f"{rule} {stream!r} gives {shown(given)}, and should give {shown(right)}.".strip())
    for stream, places, rule in CUTS:
        right, cuts = _standard(stream), range(1, len(stream))
        wrong = [cut for cut in cuts if _tried(parse, [stream[:cut], stream[cut:]]) != right]
        if wrong:
            first, second = stream[: wrong[0]], stream[wrong[0] :]
            if not set(wrong) <= set(places):
                rule = LINE if stream == CUTS[0][0] else ""
            where = f"Right in one piece, wrong in chunks ({first!r}, then {second!r})"
            return Verdict(False, f"{where}{': ' if rule else '.'}{rule}")
        if _tried(parse, [bytes([byte]) for byte in stream]) != right:
            return Verdict(False, f"Right in one piece and in two, wrong byte by byte: {stream!r}.")
    for stream in (b"data: x\n\n", b"id: 7\ndata: x\r\r", b": x\n\n\ndata: x\r\ndata: y\r\n\r"):
        if late := _late(parse, [bytes([byte]) for byte in stream]) or _late(parse, [stream]):
            return Verdict(False, late)
    return Verdict(
        True, f"{len(RULES) + len(SPACE)} rules of the standard, every way to cut a stream, each event at once."
    )


def _tried(parse: Parse, chunks: list[bytes]) -> list[Parsed] | Exception:
    try:
        given = parse(chunks)
        if inspect.isasyncgen(given) or inspect.iscoroutine(given):
            if inspect.iscoroutine(given):
                given.close()
            raise Misfit("It is an `async def`; here a plain generator is asked for: `def`, with a `yield` in it.")
        if not isinstance(given, Iterable):
            raise Misfit(f"It gives {shown(given)}; a generator is asked for: a `def` with a `yield` in it.")
        return [_three(event) for event in islice(given, PATIENCE)]
    except Misfit:
        raise
    except Exception as error:
        return error


def _three(event: Any) -> Parsed:
    if isinstance(event, str) or not isinstance(event, Sequence) or len(event) != 3:
        raise Misfit(f"It yields {shown(event)}, which is not (type, data, last_event_id).")
    kind, data, last = event
    return kind, data, last


def _late(parse: Parse, chunks: list[bytes]) -> str:
    """What to say of a parser that gives an event later than its last byte; nothing of one that does not."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        for chunk in [*chunks, *[b": beat\n\n"] * PATIENCE]:
            taken += 1
            yield chunk

    if next(iter(parse(endless())), None) is None:
        return f"From a generator of the chunks {shown(chunks)} and comments after them comes no event."
    if taken == len(chunks):
        return ""
    if taken >= len(chunks) + PATIENCE:
        return "It gives nothing before the stream has ended, and a stream need not end: yield each event at once."
    return f"An event came {taken - len(chunks)} chunks after its blank line; the next chunk may be hours away."


def _standard(stream: bytes) -> list[Parsed]:
    return [(event.type, event.data, event.last_event_id) for event in EventStreamParser().feed(stream)]


# Data for a block; what to say if the client then gets this other data instead (None: whatever it gets).
DATA: Sequence[tuple[str, str | None, str]] = (
    ("x", "", ""),
    ("  a", " a", "A parser takes one space after the colon away; without one of yours, the data's own goes."),
    ("", None, "Empty data is data: it takes a `data:` line."),
    ("a\nb", None, "A newline in the data ends the field: each line of the data needs a `data:` of its own."),
    ("a\n\nid: 9", None, "Data with a blank line in it forged a block: each line needs a `data:`."),
    ("a\rid: 9", None, "A CR ends a line, too: data with one in it forged a field."),
    ("a\r\nb", "a\n\nb", "CRLF is one end of line: here it became two."),
    ("a\n", "a", "The last newline of the data is lost: str.splitlines() drops it."),
    ("a\u2028b", "a\nb", "str.splitlines() splits where a parser does not, at U+2028 for one."),
)
UNSENDABLE = (
    ("a\ndata: x", "1", "it forges a field"),
    ("a\r", "1", "a CR ends a line, too"),
    ("a", "1\n\ndata: x", "it forges a block"),
    ("a", "1\rid: 2", "a CR ends a line, too"),
    ("a", "1\0", "a parser ignores an id with a NUL in it, and keeps the one before"),
)


@judged
def event_block(block: Callable[[str, str, str], str]) -> Verdict:
    """Exercise: `block(type, id, data)` gives a block's text; ValueError for a type or id that cannot be sent."""
    return bounded(lambda: _block_judged(block))


def _block_judged(block: Callable[[str, str, str], str]) -> Verdict:
    for data, got_instead, rule in DATA:
        try:
            text: Any = block("größe: x", "e-7 é", data)
        except Exception as error:
            return Verdict(False, f"Type 'größe: x', id 'e-7 é' and data {data!r} can be sent. {explained(error)}")
        if inspect.iscoroutine(text):
            text.close()
            raise Misfit("It is an `async def`; here a plain `def` is asked for, whose caller does not await.")
        if not isinstance(text, str):
            hint = " Is there a `return`?" if text is None else ""
            return Verdict(False, f"For data {data!r} it should give a text, and gives {shown(text)}.{hint}")
        wanted = [("größe: x", re.sub("\r\n?", "\n", data), "e-7 é")]
        got = _standard(text.encode(errors="replace"))
        if not got and _standard((text + "\n").encode(errors="replace")) == wanted:
            return Verdict(False, "A block ends with a blank line; without one it waits for the next block.")
        if got != wanted:
            said = got_instead is None or [event[1] for event in got] == [got_instead]
            return Verdict(False, f"{rule if said else ''} For data {data!r} a client gets {shown(got)}.".strip())
        if _standard(text.encode() + b"data: next\n\n") != [*wanted, ("message", "next", "e-7 é")]:
            return Verdict(False, f"{text!r} spoils the block that follows.")
    for kind, name, why in UNSENDABLE:
        try:
            given: Any = block(kind, name, "x")
        except ValueError:
            continue
        except Exception as error:
            return Verdict(False, f"Type {kind!r} with id {name!r}: a ValueError is asked for. {explained(error)}")
        if isinstance(given, ValueError) or given is ValueError:
            return Verdict(False, "It returns the ValueError, and nobody may look: `raise` it.")
        return Verdict(False, f"Type {kind!r} with id {name!r} cannot be sent ({why}): raise a ValueError.")
    return Verdict(True, "Whatever the data is, the client gets it, and nobody forges a field.")


# A client on trial. One update each half second; the server keeps KEPT of them, and asks for a pause of RETRY s.

KEPT, RETRY = 30, 4.0
EDITS = Schedule.periodic(0.5, 90.0, phase=0.25, seed=4)
IN_A_BLOCK, CUT, OUTAGE, BACK = 12, 30, 60, 100  # updates published when each thing happens
UNLISTED = "the link was cut while it was listing"  # how relist() fails, once
TOO_OFTEN = 60  # requests in the outage; whoever makes more is slowed down, to keep the check short

Relist = Callable[[], Awaitable[None]]
Client = Callable[[str, ClientLog, Relist], Awaitable[None]]


@dataclass(frozen=True)
class _Asked:
    """A request for /events as the server saw it: when (virtual s), from which cursor, and whether it was refused."""

    at: float
    after: str | None
    refused: bool


@dataclass
class _Ordeal:
    """What the server saw and did to the client, and what the client did about the reset."""

    asked: list[_Asked] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)  # paths, other than /events
    cuts: list[float] = field(default_factory=list)
    unlisted: list[float] = field(default_factory=list)  # when relist() has failed
    head: int = 0  # of the log, at the last request
    torn: str = ""  # the cursor of the update that was cut in the middle
    listings: list[Coroutine[Any, Any, None]] = field(default_factory=list)  # as relist() has given them
    listed: int = 0  # of those, awaited and well
    resets: int = 0  # that the server has sent
    run: Run | None = None
    raised: BaseException | None = None

    def pauses(self) -> list[float]:
        """The seconds from each cut and each refusal to the next request; not from a failure of relist()."""
        pauses = []
        for request, following in pairwise(self.asked):
            ends = [at for at in sorted([*self.cuts, *self.unlisted]) if request.at < at < following.at]
            end = request.at if request.refused else ends[0] if ends else None
            if end is not None and end not in self.unlisted:
                pauses.append(following.at - end)
        return pauses


@judged
def sse_client(client: Client) -> Verdict:
    """Exercise: `client(url, log, relist)` follows /events through cuts, refusals and a history that is too short."""
    ordeal = _Ordeal()
    try:
        ordeal.run = virtually(lambda net: _conduct(net, client, ordeal), link=Link(delay=0.025))
    except ExperimentError as problem:
        ordeal.raised = asked_for(problem)
    finally:
        forgotten = [listing for listing in ordeal.listings if inspect.getcoroutinestate(listing) == "CORO_CREATED"]
        for listing in forgotten:
            listing.close()
    if forgotten and not ordeal.raised:
        return Verdict(False, "It calls `relist()` and does not wait for it: `await relist()`.")
    fault = _stopped(ordeal) or _asks_wrongly(ordeal) or _loses(ordeal) or _lists_wrongly(ordeal)
    if fault:
        return Verdict(False, fault)
    assert ordeal.run
    gone = len(_lost(ordeal))
    return Verdict(True, f"{ordeal.run.deliveries} updates, each once; for the {gone} that were gone it listed again.")


def _stopped(ordeal: _Ordeal) -> str:
    """What to say of a client that raised, or that could not be counted."""
    error = ordeal.raised
    if error is None:
        return ""
    text = explained(error)
    if isinstance(error, ExperimentError):
        if "did not end" in text:
            return text
        if not ordeal.asked:
            seen = f" (but one for {ordeal.elsewhere[0]})" if ordeal.elsewhere else ""
            return (
                f"The server saw no request for /events{seen}: ask for `{{url}}/events` inside `with log.request():`."
            )
        return "It made no request inside `with log.request():`, so nothing can be counted."
    if ordeal.unlisted and isinstance(error, httpx.TransportError) and str(error) == UNLISTED:
        return f"It stopped when `relist()` failed, which is a failure of the network like any other.\n{text}"
    if ordeal.asked and ordeal.asked[-1].refused and isinstance(error, (httpx.HTTPStatusError, SSEError)):
        return f"It stopped at the 503, which passes: try again after a pause.\n{text}"
    if isinstance(error, (httpx.TransportError, OSError)) and len(ordeal.cuts):
        return f"It stopped when the link was cut: catch `httpx.TransportError`, and ask again.\n{text}"
    if ordeal.resets and not ordeal.listings and isinstance(error, KeyError) and error.args == ("seq",):
        return f"It took the reset for an update: look at the event's type first.\n{text}"
    if isinstance(error, json.JSONDecodeError):
        return f"It took something for an update that is none: look at the event's type first.\n{text}"
    return text


def _asks_wrongly(ordeal: _Ordeal) -> str:
    assert ordeal.run
    asked, run = ordeal.asked, ordeal.run
    if len(asked) > run.requests:
        return f"{len(asked)} requests, {run.requests} of them inside `with log.request():`: each needs its own."
    again = asked[1:]
    if asked[-1].refused:
        return "It gave up at the 503, as a browser does; nothing after it arrived."
    if survived := [cut for cut in ordeal.cuts if cut > asked[-1].at]:
        which = ("first", "second", "third")[-len(survived)]
        return (
            f"It never came back after the {which} cut: does its loop end, or is the pause too long? `retry` asked for "
            f"{RETRY:.0f} s."
        )
    if (shortest := min(ordeal.pauses())) < RETRY - 0.1:
        often = f"{sum(request.refused for request in asked)} requests in {(BACK - OUTAGE) / 2:.0f} s of 503"
        return f"It came back {shortest:.2g} s after a cut or a 503 ({often}): `retry` asked for {RETRY:.0f} s."
    if not any(request.after for request in again):
        return "It comes back without a cursor, which is `Last-Event-ID`: each time, what fell into the pause is lost."
    if run.duplicated:
        again_and_again = {request.after for request in again}
        if len(again_and_again) == 1:
            return f"{run.duplicated} updates came again: its cursor is always {again[0].after!r}."
        times = Counter((delivery.seq, delivery.at) for delivery in run.all_deliveries)
        if max(times.values()) > 1:
            return f"{run.duplicated} updates were delivered more than once, and at the same moment."
        return f"{run.duplicated} updates came again: which id does it send after a cut?"
    return ""


def _loses(ordeal: _Ordeal) -> str:
    assert ordeal.run
    run, lost = ordeal.run, _lost(ordeal)
    if run.lost == run.expected:
        return "Nothing was delivered: an event of type `update` has the update's JSON as its data."
    early = sorted(lost - set(range(OUTAGE + 1, ordeal.head + 1)))  # the rest only the list can tell
    if not early:
        return ""
    if (slow := max(ordeal.pauses()[:2])) > KEPT * 0.4:
        return f"It came back {slow:.0f} s after a cut; the server asked for {RETRY:.0f}, and keeps {KEPT // 2} s."
    if [request.after for request in ordeal.asked[1:2]] == [ordeal.torn]:
        return (
            "The update whose block was cut in the middle is lost: its id was kept before the event had been handled."
        )
    return f"Lost, though the server would have sent them again: {shown(early)}."


def _lists_wrongly(ordeal: _Ordeal) -> str:
    if not ordeal.listings:
        return "The server said `event: reset`, and the client went on as if nothing had been lost."
    if ordeal.listed > 1:
        times = "once" if ordeal.resets == 1 else f"{ordeal.resets} times"
        return (
            f"It listed again {ordeal.listed} times, and the server said `reset` {times}: only that calls for it, and "
            "one list that arrives is enough."
        )
    if not ordeal.listed:
        return (
            "`relist()` failed, and was not asked again: keep an id only when its event has been handled, the reset's "
            "too."
        )
    return ""


def _lost(ordeal: _Ordeal) -> set[int]:
    assert ordeal.run
    return {update.seq for update in ordeal.run.published} - {seq for _, seq in ordeal.run.first_deliveries}


async def _conduct(net: Net, client: Client, ordeal: _Ordeal) -> Run:
    feed = Feed(history=KEPT, epoch="exam")
    app = sse.create_app(feed, retry=int(1000 * RETRY))
    loop = asyncio.get_running_loop()
    away = False

    @app.middleware("http")
    async def gateway(request: Request, call_next: RequestResponseEndpoint) -> Response:
        if request.url.path != "/events":
            ordeal.elsewhere.append(request.url.path)
            return await call_next(request)
        after = request.headers.get("last-event-id") or request.query_params.get("after")
        ordeal.asked.append(_Asked(loop.time(), after, away))
        ordeal.head = feed.head
        if away:
            if sum(asked.refused for asked in ordeal.asked) > TOO_OFTEN:
                await asyncio.sleep(0.5)
            return Response(status_code=503)
        return await call_next(request)

    async def listing() -> None:
        await asyncio.sleep(0.05)  # there and back
        if not ordeal.unlisted:
            ordeal.unlisted.append(loop.time())
            raise httpx.ReadError(UNLISTED)
        ordeal.listed += 1

    def relist() -> Awaitable[None]:
        ordeal.listings.append(listing())
        return ordeal.listings[-1]

    def cut() -> None:
        ordeal.cuts.append(loop.time())
        net.link.cut()

    async def mischief() -> None:
        nonlocal away
        await _until(lambda: feed.head >= IN_A_BLOCK)
        await asyncio.sleep(0.2)  # the last update has arrived, the next is not published yet
        ordeal.torn = feed.cursor_at(IN_A_BLOCK + 1)
        net.link.cut_after(len(f"d4\r\nevent: update\nid: {ordeal.torn}\ndata: "))
        await _until(lambda: feed.head > IN_A_BLOCK)
        ordeal.cuts.append(loop.time())
        await _until(lambda: feed.head >= CUT)
        cut()
        await _until(lambda: feed.head >= OUTAGE)
        await asyncio.sleep(0.2)
        away = True
        cut()
        await _until(lambda: feed.head >= BACK)
        away = False

    async with serve(app) as server:
        doing = asyncio.create_task(mischief())
        try:
            follow = awaiting(client)
            return await experiment(server, lambda url, log: follow(url, log, relist), EDITS, clients=1, grace=5.0)
        finally:
            ordeal.resets = app.traffic.resets
            doing.cancel()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # in virtual time, where looking costs nothing
        await asyncio.sleep(0.01)


# A server's loop on trial: a client that needs SLOW s for each block, publications, and then silence.

HEARTBEAT, SLOW, SECONDS = 10.0, 0.2, 60.0  # s
PAUSES = (0.5, 9.7, 4.8, 0.05, 7.0)  # s before each publication; the first while the client is busy with the backlog
SILENCE = sum(PAUSES) + 1.0  # s: from here on nothing happens
AT_ONCE = 1000  # looks into the journal in one instant: who looks more often does not let time go on
RACE = "Look again before waiting: news() counts from the call on."


class Journal:
    """A log as the exercise sees it: numbers from 1, a text each. It counts how often and when it is asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.looks: list[float] = []  # moments of after()
        self.waits = 0  # calls of news()
        self._now, self._at_once = -1.0, 0
        self._readers: list[asyncio.Future[None]] = []

    def after(self, position: int) -> list[tuple[int, str]]:
        """All (number, text) later than a position."""
        now = asyncio.get_running_loop().time()
        self.looks.append(now)
        self._now, self._at_once = now, self._at_once + 1 if now == self._now else 1
        if self._at_once == AT_ONCE:
            raise Misfit("It never waits: without news it should sleep until `journal.news()` or the heartbeat.")
        return list(enumerate(self.texts, 1))[position:]

    def news(self) -> asyncio.Future[None]:
        """A future that is done at the next publication; one from before does not count."""
        self.waits += 1
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


Loop = Callable[[Journal, int, float], AsyncIterator[str]]


@dataclass
class _Heard:
    """What a slow client heard of a loop, and when; `fault` is what it could not take."""

    journal: Journal = field(default_factory=Journal)
    published: dict[int, float] = field(default_factory=dict)
    came: list[tuple[int, float]] = field(default_factory=list)
    beats: list[tuple[float, float]] = field(default_factory=list)  # moment, seconds of silence before it
    busy: list[tuple[float, float]] = field(default_factory=list)  # from a block's arrival until the next is asked for
    last: float = 0.0
    fault: str = ""


@judged
def event_generator(stream: Loop) -> Verdict:
    """Exercise: `stream(journal, position, heartbeat)` yields a block for each update, and comments in silence."""
    heard = virtually(lambda net: _listen(stream), limit=300.0)
    if fault := heard.fault or _misses(heard) or _beats_wrongly(heard):
        return Verdict(False, fault)
    updates, beats = len(heard.came), len(heard.beats)
    return Verdict(True, f"{updates} updates, each once and at once, and {beats} heartbeats, all in silence.")


async def _listen(stream: Loop) -> _Heard:
    loop, heard = asyncio.get_running_loop(), _Heard()
    for number in range(1, 6):
        heard.journal.publish(f"text {number}")
    heard.published = dict.fromkeys(range(3, 6), 0.0)

    async def publish() -> None:
        for pause in PAUSES:
            await asyncio.sleep(pause)
            number = len(heard.journal.texts) + 1
            heard.published[number] = loop.time()
            heard.journal.publish(f"text {number}")

    publishing, reading = asyncio.create_task(publish()), asyncio.create_task(_read(stream, heard))
    reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # told below, or by the run itself
    await asyncio.wait({reading}, timeout=SECONDS)
    for task in publishing, reading:
        task.cancel()
    await asyncio.wait({publishing, reading})
    if not reading.cancelled():
        try:
            reading.result()  # raises what the loop raised
        except TimeoutError as over:
            if isinstance(over, OutOfTime):
                raise
            raise Misfit(
                "In the silence it raised TimeoutError, as `asyncio.timeout` and `asyncio.wait_for` do when the time "
                "is over: catch it, for the stream goes on."
            ) from over
    return heard


async def _read(stream: Loop, heard: _Heard) -> None:
    loop, parser = asyncio.get_running_loop(), EventStreamParser()
    blocks = stream(heard.journal, 2, HEARTBEAT)
    if not hasattr(blocks, "__aiter__"):
        if inspect.iscoroutine(blocks):
            blocks.close()
        raise Misfit("It is no async generator: `async def`, with a `yield` in it.")
    async for text in blocks:
        now = loop.time()
        if not isinstance(text, str):
            heard.fault = f"It yields {shown(text)}; a block is a text."
            return
        silence, heard.last = now - heard.last, now
        found = parser.feed(text.encode())
        comment = all(line.startswith(":") for line in text.splitlines() if line)
        if comment:
            heard.beats.append((now, silence))
        elif not found or not re.search("(\r\n|\n|\r){2}$", text):
            heard.fault = f"{text!r} is not a block: `id: N`, `data: TEXT`, and a blank line."
            return
        for event in found:
            if not re.fullmatch("[0-9]+", event.last_event_id) or event.data != f"text {event.last_event_id}":
                ask = " Is that the heartbeat? It should be a comment." if "text" not in event.data else ""
                heard.fault = f"The client got {event.data!r} with id {event.last_event_id!r}.{ask}"
                return
            heard.came.append((int(event.last_event_id), now))
        await asyncio.sleep(SLOW)
        heard.busy.append((now, loop.time()))
    heard.fault = "It ended by itself; a stream lasts until the client leaves."


def _misses(heard: _Heard) -> str:
    numbers = [number for number, _ in heard.came]
    if not numbers:
        return "No update came at all."
    if numbers[0] < 3:
        return f"It began with number {numbers[0]}: the position was 2, so the next is 3."
    if len(set(numbers)) < len(numbers):
        return f"Some came twice ({shown(numbers)}): the position has to move with what was sent."
    if numbers != sorted(numbers):
        return f"They came out of order: {shown(numbers)}."
    moments = dict(heard.came)
    if forgotten := sorted({3, 4, 5} - set(numbers)):
        return f"Number {forgotten[0]} never came; it was in the journal from the beginning, later than the position."
    for number, at in heard.published.items():
        delay = moments.get(number, float("inf")) - at
        if delay > 2.0:
            what = f"Number {number} came {delay:.0f} s late" if number in moments else f"Number {number} never came"
            if not heard.journal.waits:
                return f"{what}: nothing waits for `journal.news()`."
            if number not in moments and number < max(moments):
                return f"{what}, and later ones did: the position moved further than what was sent."
            if any(begin <= at <= end for begin, end in heard.busy):
                return f"{what}; it was published while a block was being written. {RACE}"
            return f"{what}: wait for `journal.news()` and for the heartbeat, whichever is first."
    return ""


def _beats_wrongly(heard: _Heard) -> str:
    for at, silence in heard.beats:
        if silence < HEARTBEAT - 0.1:
            return (
                f"A heartbeat came after {silence:.2g} s of silence; `heartbeat` is {HEARTBEAT:.0f} s, and each block "
                "begins the silence anew."
            )
        if silence > HEARTBEAT + 1:
            return f"There were {silence:.0f} s of silence before the heartbeat at {at:.0f} s, longer than `heartbeat`."
    if not heard.beats or SECONDS - heard.last > HEARTBEAT + 1:
        quiet = SECONDS - heard.last
        return f"There was no heartbeat in {quiet:.0f} s of silence: a proxy would have cut the stream."
    looks = sum(at > SILENCE for at in heard.journal.looks)
    if looks > 3 * (SECONDS - SILENCE) / HEARTBEAT:
        return (
            f"It asked the journal {looks} times in {SECONDS - SILENCE:.0f} s of silence, which is polling: wait for "
            "`journal.news()`."
        )
    return ""
