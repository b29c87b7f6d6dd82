"""The checks of notebook 04: right answers pass, however unusual; of wrong ones each is told what is wrong with it."""

import asyncio
import codecs
import contextlib
import functools
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
from httpx_sse import aconnect_sse

from lab import checks, clients
from lab.bench.experiment import HTTP, ClientLog
from lab.clients.event_stream import EventStreamParser
from tests.support_checks import Corpus, judging

Parsed = tuple[str, str, str]


@dataclass(frozen=True)
class Parser:
    """The solution of the first exercise, or one of its mutants."""

    ends: str = "\r\n|\r|\n"
    everything: bool = False  # splits at whatever str.splitlines() splits at
    keeps_rest: bool = True
    keeps_bytes: bool = True
    pairs: bool = True  # knows that CR and LF may come in two chunks
    waits: bool = False  # with a CR at the end of a chunk, for what comes next
    space: str = "one"
    needs_space: bool = False
    colons: int = 1
    joins: str = "\n"
    keeps_type: bool = False
    keeps_id: bool = True
    takes_id_back: bool = True
    takes_nul: bool = False
    dispatches: str = "data"
    at_the_end: bool = False
    mark: bool = True
    errors: str = "replace"
    lowers: bool = False

    def __call__(self, chunks: Iterable[bytes]) -> Iterator[Parsed]:
        self_type, name, data = "", "", list[str]()
        for line in self.lines(chunks):
            if line:
                field, value = self.field(line)
                if field == "data":
                    data.append(value)
                elif field == "event":
                    self_type = value
                elif field == "id" and (self.takes_nul or "\0" not in value) and (value or self.takes_id_back):
                    name = value
                continue
            if {"data": bool(data), "text": any(data), "all": True}[self.dispatches]:
                yield self_type or "message", self.joins.join(data), name
            self_type, data = self_type if self.keeps_type else "", []
            name = name if self.keeps_id else ""
        if data and self.at_the_end:
            yield self_type or "message", self.joins.join(data), name

    def field(self, line: str) -> tuple[str, str]:
        parts = line.split(": " if self.needs_space else ":", self.colons)
        value = parts[1] if len(parts) > 1 else ""
        return parts[0].lower() if self.lowers else parts[0], {
            "one": value.removeprefix(" "),
            "all": value.strip(),
            "none": value,
        }[self.space]

    def lines(self, chunks: Iterable[bytes]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8-sig" if self.mark else "utf-8")(self.errors)
        rest, after_cr = "", False
        for chunk in chunks:
            text = decoder.decode(chunk) if self.keeps_bytes else chunk.decode("utf-8-sig", self.errors)
            if not text:
                continue
            if after_cr and self.pairs:
                text = text.removeprefix("\n")
            after_cr = text.endswith("\r") and not self.waits
            text = rest + text
            held = "\r" if self.waits and text.endswith("\r") else ""
            text = text.removesuffix(held) if held else text
            if self.everything:
                *lines, last = [line.rstrip("\r\n\x0b\u2028") for line in text.splitlines(keepends=True)] or [""]
                lines, last = ([*lines, last], "") if text.endswith(("\n", "\r")) else (lines, last)
            else:
                *lines, last = re.split(self.ends, text)
            rest = (last + held) if self.keeps_rest else ""
            yield from lines


def tutorial(chunks: Iterable[bytes]) -> Iterator[Parsed]:
    """What many tutorials have."""
    for chunk in chunks:
        for line in chunk.decode(errors="replace").split("\n"):
            if line.startswith("data:"):
                yield "message", line[5:].strip(), ""


def by_the_lab(chunks: Iterable[bytes]) -> Iterator[Parsed]:
    """The course's own parser."""
    parser = EventStreamParser()
    for chunk in chunks:
        for event in parser.feed(chunk):
            yield event.type, event.data, event.last_event_id


class Named(NamedTuple):
    """An event."""

    type: str
    data: str
    id: str


def lists(chunks: Iterable[bytes]) -> Iterator[list[str]]:
    """Lists instead of tuples."""
    return (list(event) for event in by_the_lab(chunks))


def byte_by_byte(chunks: Iterable[bytes]) -> Iterator[Parsed]:
    """Cuts every chunk once more."""
    yield from by_the_lab(bytes([byte]) for chunk in chunks for byte in chunk)


class Iterating:
    """An iterator class instead of a generator."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.events = by_the_lab(chunks)

    def __iter__(self) -> "Iterating":
        return self

    def __next__(self) -> Parsed:
        return next(self.events)


def joins(chunks: Iterable[bytes]) -> Iterator[Parsed]:
    """Waits for the end of the stream."""
    yield from by_the_lab([b"".join(chunks)])


def all_at_once(chunks: Iterable[bytes]) -> list[Parsed]:
    """A list instead of a generator."""
    return list(by_the_lab(chunks))


def one_late(chunks: Iterable[bytes]) -> Iterator[Parsed]:
    """Keeps each event until the next chunk."""
    parser, ready = EventStreamParser(), list[Any]()
    for chunk in chunks:
        yield from [(event.type, event.data, event.last_event_id) for event in ready]
        ready = parser.feed(chunk)
    yield from [(event.type, event.data, event.last_event_id) for event in ready]


def forgets_the_block(chunks: Iterable[bytes]) -> Iterator[Parsed]:
    """Keeps an unfinished line, but not the unfinished block."""
    rest, name = b"", ""
    for chunk in chunks:
        *whole, rest = re.split(b"\r\n|\r|\n", rest + chunk)
        parser = EventStreamParser(name)
        for event in parser.feed(b"".join(line + b"\n" for line in whole)):
            yield event.type, event.data, event.last_event_id
        name = parser.last_event_id


def no_end(chunks: Iterable[bytes]) -> Iterator[Parsed]:
    """Gives the same event for ever."""
    while True:
        yield "message", "x", ""


def busy(chunks: Iterable[bytes]) -> Iterator[Parsed]:
    """Never comes to an end."""
    while chunks is not None:
        pass
    yield "message", "x", ""


async def async_parser(chunks: Iterable[bytes]) -> AsyncIterator[Parsed]:
    """An async generator where a plain one is asked for."""
    for event in by_the_lab(chunks):
        yield event


def stub(*_: Any) -> Any:
    """An exercise's empty function."""


async def async_stub(*_: Any) -> Any:
    """An exercise's empty coroutine function."""


PARSERS = Corpus(
    checks.event_stream_parser,
    stub,
    right={
        "the solution": Parser(),
        "a method": Parser().__call__,
        "the course's own": by_the_lab,
        "a generator expression of lists": lists,
        "byte by byte": byte_by_byte,
        "an iterator class": Iterating,
        "a partial function": functools.partial(lambda chunks, times: by_the_lab(chunks), times=1),
        "a lambda": lambda chunks: iter(by_the_lab(chunks)),
        "splits text": lambda chunks: Parser()(chunk for chunk in chunks),
        "events with names": lambda chunks: (Named(*event) for event in by_the_lab(chunks)),
    },
    wrong={
        "LF only": (Parser(ends="\n"), "CRLF ends a line, too"),
        "LF and CRLF": (Parser(ends="\r\n|\n"), "a CR alone does, too"),
        "CRLF twice": (Parser(ends="[\r\n]"), "both bytes together, once"),
        "splitlines": (Parser(everything=True), "str.splitlines()"),
        "drops the unfinished line": (Parser(keeps_rest=False), "so keep it"),
        "drops the unfinished character": (Parser(keeps_bytes=False), "middle of a character"),
        "CR and LF apart": (Parser(pairs=False), "are one end of line"),
        "waits after a CR": (Parser(waits=True), "A CR has ended its line"),
        "drops the unfinished block": (forgets_the_block, "a block that a chunk leaves unfinished"),
        "strips": (Parser(space="all"), "Only one space"),
        "keeps the space": (Parser(space="none"), "One space after the colon"),
        "needs the space": (Parser(needs_space=True), "may be missing"),
        "splits at every colon": (Parser(colons=-1), "first colon"),
        "joins without newline": (Parser(joins=""), "joined by newlines"),
        "keeps the type": (Parser(keeps_type=True), "its own block only"),
        "forgets the id": (Parser(keeps_id=False), "An id stays"),
        "keeps an id that is taken back": (Parser(takes_id_back=False), "takes the id back"),
        "takes NUL": (Parser(takes_nul=True), "NUL"),
        "phantoms": (Parser(dispatches="all"), "without data is no event"),
        "swallows empty data": (Parser(dispatches="text"), "still data"),
        "takes the end for a blank line": (Parser(at_the_end=True), "never happened"),
        "keeps the mark": (Parser(mark=False), "byte order mark"),
        "Latin-1": (lambda chunks: Parser()(chunk.decode("latin-1").encode() for chunk in chunks), "stream is UTF-8"),
        "any case": (Parser(lowers=True), "Capital letters count"),
        "stops at bad UTF-8": (Parser(errors="strict"), "It raised UnicodeDecodeError"),
        "a tutorial's": (tutorial, "Only one space after the colon"),
        "one instead of three": (lambda chunks: [("message",)], "not (type, data, last_event_id)"),
        "events as text": (lambda chunks: ["abc"], "not (type, data, last_event_id)"),
        "nothing": (lambda chunks: print(end=""), "It gives None"),
        "always the same": (lambda chunks: [("message", "x", ""), ("message", "y", "")], "gives"),
        "waits for the end": (joins, "before the stream has ended"),
        "a list": (all_at_once, "before the stream has ended"),
        "one chunk late": (one_late, "1 chunks after its blank line"),
        "no end": (no_end, "gives"),
        "an endless loop": (busy, "does not come to an end"),
        "async": (async_parser, "a plain generator is asked for"),
        "raises": (lambda chunks: [chunks[0]["data"]], "It raised TypeError"),
    },
)


@dataclass(frozen=True)
class Block:
    """The solution of the second exercise, or one of its mutants."""

    split: Callable[[str], list[str]] = lambda data: re.split("\r\n|\r|\n", data)
    space: str = " "
    end: str = "\n\n"
    refused: str = "\r\n\0"
    watches: str = "both"

    def __call__(self, type: str, id: str, data: str) -> str:
        watched = {"both": type + id, "type": type, "id": id}[self.watches]
        if any(character in watched for character in self.refused):
            raise ValueError("a type and an id are one line each")
        lines = [
            f"event: {type}",
            f"id: {id}",
            *(f"data:{self.space}{line}" for line in self.split(data)),
        ]
        return "\n".join(lines) + self.end


def manual(type: str, id: str, data: str) -> str:
    """With str.replace instead of a regular expression, and CRLF as end of line."""
    for text in (type, id):
        if set(text) & set("\r\n\0"):
            raise ValueError(text)
    lines = data.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\r\n".join([f"id: {id}", f"event: {type}", *(f"data: {line}" for line in lines), "", ""])


def decent(type: str, id: str, data: str) -> str:
    """Refuses with an error of its own, which is a ValueError."""

    class Unsendable(ValueError):
        pass

    if re.search("[\r\n\0]", type + id):
        raise Unsendable(type, id)
    return ": a comment\n" + Block()(type, id, data)


def returns_the_error(type: str, id: str, data: str) -> Any:
    """Returns what it should raise."""
    return ValueError("no") if re.search("[\r\n\0]", type + id) else Block()(type, id, data)


def asserts(type: str, id: str, data: str) -> str:
    """An assertion instead of a ValueError."""
    assert not re.search("[\r\n\0]", type + id), "one line each"
    return Block()(type, id, data)


def data_first(type: str, id: str, data: str) -> str:
    """Another order of the fields, and no space where none is needed."""
    event, name, *lines, _, _ = Block()(type, id, data).split("\n")
    return "\n".join([*lines, name.replace(": ", ":", 1), event]) + "\n\n"


async def async_block(type: str, id: str, data: str) -> str:
    """Whose caller would have to await."""
    return Block()(type, id, data)


BLOCKS = Corpus(
    checks.event_block,
    stub,
    right={
        "the solution": Block(),
        "a function": Block().__call__,
        "CRLF": manual,
        "CR": lambda type, id, data: manual(type, id, data).replace("\r\n", "\r"),
        "a ValueError of its own, and a comment": decent,
        "two blank lines": Block(end="\n\n\n"),
        "data first": data_first,
        "a partial function": functools.partial(lambda more, type, id, data: Block()(type, id, data), None),
        "splits with a set of pairs": Block(split=lambda data: re.split("\r\n?|\n", data)),
        "a bad id replaced by an error from int": lambda type, id, data: (
            int("x") if re.search("[\r\n\0]", type + id) else Block()(type, id, data)
        ),
    },
    wrong={
        "data as it is": (Block(split=lambda data: [data]), "ends the field"),
        "LF only": (Block(split=lambda data: data.split("\n")), "A CR ends a line"),
        "CRLF twice": (Block(split=lambda data: re.split("[\r\n]", data)), "CRLF is one end of line"),
        "splitlines": (Block(split=str.splitlines), "Empty data is data"),
        "splitlines or one": (Block(split=lambda data: data.splitlines() or [""]), "str.splitlines() drops it"),
        "U+2028": (
            Block(split=lambda data: [line.rstrip("\u2028\n\r") for line in (data + "\n").splitlines(keepends=True)]),
            "U+2028",
        ),
        "escapes": (Block(split=lambda data: [repr(data)[1:-1]]), "a client gets"),
        "no space": (Block(space=""), "without one of yours"),
        "no blank line": (Block(end="\n"), "ends with a blank line"),
        "no end of line": (Block(end=""), "a client gets"),
        "refuses LF only": (Block(refused="\n"), "'a\\r'"),
        "refuses no NUL": (Block(refused="\r\n"), "ignores an id with a NUL"),
        "refuses nothing": (Block(refused=""), "raise a ValueError"),
        "watches the type": (Block(watches="type"), "raise a ValueError"),
        "watches the id": (Block(watches="id"), "raise a ValueError"),
        "refuses what can be sent": (Block(refused="\r\n\0:"), "can be sent"),
        "bytes": (lambda type, id, data: b"data: x\n\n", "should give a text"),
        "prints": (lambda type, id, data: print(end=""), "Is there a `return`?"),
        "constant": (lambda type, id, data: "event: größe: x\nid: e-7 é\ndata: x\n\n", "a client gets"),
        "returns the error": (returns_the_error, "`raise` it"),
        "asserts": (asserts, "It raised AssertionError"),
        "async": (async_block, "a plain `def` is asked for"),
    },
)


Relist = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Client:
    """The solution of the third exercise, or one of its mutants."""

    sends: str = "last"
    by: str = "header"
    keeps: str = "handled"
    outlives: tuple[type[Exception], ...] = (httpx.TransportError,)
    at_503: str = "again"
    pause: float | None = None  # s, instead of the server's
    doubles: bool = False
    relists: str = "reset"
    awaits: bool = True
    looks_at_type: bool = True
    logs: bool = True
    kind: str = "update"
    path: str = "/events"
    ends: int = 1000  # requests after which it has enough
    delivers: int = 1
    drops: int = 0  # this update is not delivered

    async def __call__(self, url: str, log: ClientLog, relist: Relist) -> None:
        last, wait, failures = log.cursor, 3.0, 0
        for _ in range(self.ends):
            with contextlib.suppress(*self.outlives):
                async with httpx.AsyncClient(**HTTP) as http:
                    with log.request() if self.logs else contextlib.nullcontext():
                        sent = {"last": last, "first": log.cursor, "none": ""}[self.sends]
                        headers = {"Last-Event-ID": sent} if sent and self.by == "header" else {}
                        params = {"after": sent} if sent and self.by == "parameter" else {}
                        where = f"{url}{self.path}"
                        async with http.stream("GET", where, headers=headers, params=params) as response:
                            if response.status_code != 200 and self.at_503 == "returns":
                                return
                            if self.at_503 == "raises":
                                response.raise_for_status()
                            if self.relists == "always" and response.status_code == 200:
                                await relist()
                            failures += response.status_code != 200
                            parser = EventStreamParser(last)
                            async for chunk in response.aiter_bytes():
                                if self.keeps == "seen" and (ids := re.findall(rb"^id: (.*)$", chunk, re.MULTILINE)):
                                    last = ids[-1].decode()
                                for event in parser.feed(chunk):
                                    if self.keeps == "before":
                                        last = event.last_event_id
                                    await self.handle(event.type, event.data, log, relist)
                                if self.keeps == "handled":
                                    last = parser.last_event_id
                                if parser.reconnection_time is not None:
                                    wait = parser.reconnection_time / 1000
            factor = 2**failures if self.doubles else 1
            if pause := (wait if self.pause is None else self.pause) * factor:
                await asyncio.sleep(pause)

    async def handle(self, kind: str, data: str, log: ClientLog, relist: Relist) -> None:
        if kind == self.kind or not self.looks_at_type:
            update = json.loads(data)
            for _ in range(self.delivers if update["seq"] != self.drops else 0):
                log.deliver(update)
        elif kind == "reset" and self.relists == "reset":
            if self.awaits:
                await relist()
            else:
                relist()


async def with_httpx_sse(url: str, log: ClientLog, relist: Relist) -> None:
    """The solution as the notebook writes it."""
    last, pause = log.cursor, 3.0
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            here = {"Last-Event-ID": last}
            try:
                with log.request():
                    async with aconnect_sse(http, "GET", f"{url}/events", headers=here) as source:
                        async for event in source.aiter_sse():
                            if event.event == "update":
                                log.deliver(event.json())
                            elif event.event == "reset":
                                await relist()
                            last = event.id or last
                            pause = pause if event.retry is None else event.retry / 1000
            except httpx.TransportError:
                pass
            await asyncio.sleep(pause)


async def with_the_robust_client(url: str, log: ClientLog, relist: Relist) -> None:
    """The course's own client, and a list that is asked for until it comes."""
    async with contextlib.aclosing(clients.sse(url, log.cursor, log=log)) as stream:
        async for news in stream:
            if isinstance(news, clients.Update):
                log.deliver({"seq": news.seq})
                continue
            while True:
                with contextlib.suppress(httpx.TransportError):
                    await asyncio.wait_for(relist(), 5)
                    break
                await asyncio.sleep(1)


async def phantom(url: str, log: ClientLog, relist: Relist) -> None:
    """Takes every event of httpx-sse's for an update, the ones without data included."""
    async with httpx.AsyncClient(**HTTP) as http:
        with log.request():
            async with aconnect_sse(http, "GET", f"{url}/events") as source:
                async for event in source.aiter_sse():
                    log.deliver(event.json())


async def deaf(url: str, log: ClientLog, relist: Relist) -> None:
    """Opens the stream and listens to nothing."""
    with log.request():
        await asyncio.sleep(1000)


async def one_request(url: str, log: ClientLog, relist: Relist) -> None:
    """Counts itself once, around everything."""
    with log.request():
        await Client(logs=False)(url, log, relist)


async def outside(url: str, log: ClientLog, relist: Relist) -> None:
    """Lists outside of what catches a failure."""
    asked = list[bool]()

    async def note() -> None:
        asked.append(True)

    async def once() -> None:
        await Client(ends=1)(url, log, note)

    while True:
        await once()
        if asked:
            await relist()
        await asyncio.sleep(4)


async def synchronous(url: str, log: ClientLog, relist: Relist) -> None:
    """Asks without await."""
    with log.request():
        httpx.get(f"{url}/events")  # noqa: ASYNC210  # the mistake


async def sleeps(url: str, log: ClientLog, relist: Relist) -> None:
    """Pauses with time.sleep."""
    while True:
        await Client(ends=1, pause=0.0)(url, log, relist)
        time.sleep(4)  # noqa: ASYNC251  # the mistake


def plain(url: str, log: ClientLog, relist: Relist) -> None:
    """No coroutine."""


CLIENTS = Corpus(
    checks.sse_client,
    async_stub,
    right={
        "the solution": Client(),
        "a function": Client().__call__,
        "by httpx-sse": with_httpx_sse,
        "the cursor as a parameter": Client(by="parameter"),
        "the robust client": with_the_robust_client,
        "a longer pause": Client(pause=9.0),
        "doubling back-off": Client(doubles=True),
        "raises at the 503, and catches it": Client(at_503="raises", outlives=(httpx.HTTPError,)),
        "outlives every exception": Client(outlives=(Exception,)),
        "a partial function": functools.partial(Client.__call__, Client()),
        "a lambda": lambda url, log, relist: Client()(url, log, relist),
    },
    wrong={
        "no cursor": (Client(sends="none"), "without a cursor"),
        "always the first": (Client(sends="first"), "always 'exam-0'"),
        "keeps an id that it has seen": (Client(keeps="seen"), "cut in the middle is lost"),
        "keeps the id before it handles": (Client(keeps="before"), "`relist()` failed, and was not asked again"),
        "dies of a cut": (Client(outlives=()), "when the link was cut"),
        "gives up at the 503": (Client(at_503="returns"), "as a browser does"),
        "dies of the 503": (Client(at_503="raises"), "stopped at the 503"),
        "no pause": (Client(pause=0.0), "`retry` asked for 4 s"),
        "polls in disguise": (Client(pause=0.1), "`retry` asked for 4 s"),
        "two seconds, whatever the server says": (Client(pause=2.0), "`retry` asked for 4 s"),
        "an hour": (Client(pause=4000.0), "is the pause too long? `retry` asked for 4 s"),
        "a pause that is too long": (Client(pause=20.0), "It came back 20 s after a cut"),
        "ignores the reset": (Client(relists="never"), "as if nothing had been lost"),
        "lists at each stream": (Client(relists="always"), "listed again"),
        "does not await the list": (Client(awaits=False), "does not wait for it"),
        "does not look at the type": (Client(looks_at_type=False), "took the reset for an update"),
        "not counted": (Client(logs=False), "no request inside"),
        "counted once": (one_request, "each needs its own"),
        "phantoms": (phantom, "look at the event's type"),
        "deaf": (deaf, "no request for /events"),
        "another address": (Client(path="/updates"), "but one for /updates"),
        "another type": (Client(kind="news"), "Nothing was delivered"),
        "three streams": (Client(ends=2), "after the second cut"),
        "one stream": (Client(ends=1), "after the first cut"),
        "everything twice": (Client(delivers=2), "at the same moment"),
        "not the fifth": (Client(drops=5), "would have sent them again: [5]"),
        "dies of the list": (outside, "when `relist()` failed"),
        "sync": (synchronous, "without `await`"),
        "time.sleep": (sleeps, "time.sleep"),
        "no coroutine": (lambda url, log, relist: 3, "`async def` is asked for"),
    },
)

HEART = ": heartbeat\n\n"


def loop(
    *,
    race: bool = False,
    beats: str = HEART,
    moves: bool = True,
    start: int | None = None,
    waits: bool = True,
    block: str = "id: {0}\ndata: {1}\n\n",
    restless: bool = False,
    patience: float = 1.0,  # heartbeats
    newest: bool = False,
    backwards: bool = False,
    several: bool = False,
    skips: int = 0,
) -> Callable[..., AsyncGenerator[str, None]]:
    """The solution of the fourth exercise, or one of its mutants."""

    async def stream(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
        position = position if start is None else start
        while True:
            news = journal.news()
            found = journal.after(position)
            if several and found:
                yield "".join(block.format(*entry) for entry in found)
                position, found = found[-1][0], []
            for number, text in found[-1:] if newest else found[::-1] if backwards else found:
                position = max(number + skips, position) if moves else position
                yield block.format(number, text)
            if race:
                news = journal.news()
            if not waits:
                await asyncio.sleep(0)
                continue
            try:
                await asyncio.wait_for(news, heartbeat * patience if beats else None)
            except TimeoutError:
                yield beats
            if restless:
                yield beats

    return stream


async def by_wait(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """With asyncio.wait, and the same future until it is done."""
    news = journal.news()
    while True:
        for number, text in journal.after(position):
            position = number
            yield f"id: {number}\r\ndata: {text}\r\n\r\n"
        done, _ = await asyncio.wait([news], timeout=heartbeat)
        if done:
            news = journal.news()
        else:
            yield ":\n\n"


async def by_timeout(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """With asyncio.timeout_at, counted from the last block; the comment has one line."""
    now = asyncio.get_running_loop().time
    last = now()
    while True:
        news = journal.news()
        for number, text in journal.after(position):
            position, last = number, now()
            yield f"data: {text}\nid: {number}\n\n"
        try:
            async with asyncio.timeout_at(last + heartbeat):
                await news
        except TimeoutError:
            last = now()
            yield ": still here\n"


class Streaming:
    """An async iterator class, not a generator."""

    def __init__(self, journal: checks.Journal, position: int, heartbeat: float) -> None:
        self.blocks = loop()(journal, position, heartbeat)

    def __aiter__(self) -> "Streaming":
        return self

    async def __anext__(self) -> str:
        return await anext(self.blocks)


async def polls(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """Push whose server polls inside."""
    quiet = 0.0
    while True:
        for number, text in journal.after(position):
            position, quiet = number, 0.0
            yield f"id: {number}\ndata: {text}\n\n"
        await asyncio.sleep(0.1)
        quiet += 0.1
        if quiet >= heartbeat:
            quiet = 0.0
            yield HEART


async def polls_with_news(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """The same with a future that it hardly waits for."""
    quiet = 0
    while True:
        for number, text in journal.after(position):
            position, quiet = number, 0
            yield f"id: {number}\ndata: {text}\n\n"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(journal.news(), 1)
        quiet += 1
        if quiet >= heartbeat:
            quiet = 0
            yield HEART


async def sleeps_a_heartbeat(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """Looks once in a heartbeat."""
    while True:
        for number, text in journal.after(position):
            position = number
            yield f"id: {number}\ndata: {text}\n\n"
        await asyncio.sleep(heartbeat)
        yield HEART


async def by_a_timer(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """Beats by a plain timer, as sse-starlette does."""
    now = asyncio.get_running_loop().time
    due = now() + heartbeat
    while True:
        news = journal.news()
        for number, text in journal.after(position):
            position = number
            yield f"id: {number}\ndata: {text}\n\n"
        try:
            async with asyncio.timeout_at(due):
                await news
        except TimeoutError:
            due += heartbeat
            yield HEART


async def ends(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """Sends what there is, once."""
    for number, text in journal.after(position):
        yield f"id: {number}\ndata: {text}\n\n"


async def one_list(journal: checks.Journal, position: int, heartbeat: float) -> list[str]:
    """No generator."""
    return [text for _, text in journal.after(position)]


async def raises(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """Forgets to catch what ends a wait."""
    while True:
        news = journal.news()
        for number, text in journal.after(position):
            position = number
            yield f"id: {number}\ndata: {text}\n\n"
        await asyncio.wait_for(news, heartbeat)


async def in_bytes(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[bytes, None]:
    """Bytes, not text."""
    async for text in loop()(journal, position, heartbeat):
        yield text.encode()


async def blocks_the_loop(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """Waits with time.sleep."""
    while True:
        time.sleep(heartbeat)  # noqa: ASYNC251  # the mistake
        yield HEART


def plain_generator(journal: checks.Journal, position: int, heartbeat: float) -> Iterator[str]:
    """Not async."""
    yield from (text for _, text in journal.after(position))


LOOPS = Corpus(
    checks.event_generator,
    async_stub,
    right={
        "the solution": loop(),
        "several blocks at once": loop(several=True),
        "asyncio.wait, CRLF": by_wait,
        "a deadline from the last block": by_timeout,
        "an async iterator": Streaming,
        "a partial function": functools.partial(loop()),
        "a lambda": lambda journal, position, heartbeat: loop()(journal, position, heartbeat),
        "with a type": loop(block="event: update\nid: {0}\ndata: {1}\n\n"),
        "another comment": loop(beats=": ping\n: pong\n\n"),
    },
    wrong={
        "a race": (loop(race=True), "while a block was being written"),
        "no heartbeat": (loop(beats=""), "no heartbeat"),
        "a heartbeat that is data": (loop(beats="data: heartbeat\n\n"), "It should be a comment"),
        "does not move": (loop(moves=False), "came twice"),
        "from the start": (loop(start=0), "the next is 3"),
        "never waits": (loop(waits=False), "never waits"),
        "no blank line": (loop(block="id: {0}\ndata: {1}\n"), "is not a block"),
        "no id": (loop(block="data: {1}\n\n"), "with id ''"),
        "no data": (loop(block="id: {0}\n\n"), "is not a block"),
        "restless": (loop(restless=True), "each block begins the silence anew"),
        "half a heartbeat": (loop(patience=0.5), "each block begins the silence anew"),
        "two heartbeats": (loop(patience=2.0), "longer than `heartbeat`"),
        "runs ahead": (loop(skips=1), "the position moved further than what was sent"),
        "only the newest": (loop(newest=True), "Number 3 never came"),
        "backwards": (loop(backwards=True), "out of order"),
        "polls": (polls, "which is polling"),
        "polls with news()": (polls_with_news, "which is polling"),
        "sleeps": (sleeps_a_heartbeat, "nothing waits for `journal.news()`"),
        "a plain timer": (by_a_timer, "each block begins the silence anew"),
        "ends": (ends, "ended by itself"),
        "one list": (one_list, "no async generator"),
        "not async": (plain_generator, "no async generator"),
        "raises": (raises, "In the silence it raised TimeoutError"),
        "bytes": (in_bytes, "a block is a text"),
        "time.sleep": (blocks_the_loop, "time.sleep"),
    },
)

CORPORA = (PARSERS, BLOCKS, CLIENTS, LOOPS)

test_right, test_wrong, test_no_answer = judging(CORPORA)
