"""The checks of notebook 04: each accepts the solution, rejects the empty stub kindly, and names each mistake."""

import asyncio
import codecs
import contextlib
import inspect
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from lab import checks
from lab.bench.experiment import HTTP, ClientLog
from lab.clients.event_stream import EventStreamParser

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
        return parts[0], {
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


PARSERS: list[tuple[Callable[..., Any], str]] = [
    (Parser(ends="\n"), "Not only LF"),
    (Parser(everything=True), "str.splitlines()"),
    (Parser(keeps_rest=False), "so keep it"),
    (Parser(keeps_bytes=False), "middle of a character"),
    (Parser(pairs=False), "are one end of line"),
    (Parser(waits=True), "has ended its line already"),
    (Parser(space="all"), "Only one space"),
    (Parser(space="none"), "Each block with data"),
    (Parser(needs_space=True), "may be missing"),
    (Parser(colons=-1), "first colon"),
    (Parser(joins=""), "joined by newlines"),
    (Parser(keeps_type=True), "its own block only"),
    (Parser(keeps_id=False), "An id stays"),
    (Parser(takes_id_back=False), "takes the id back"),
    (Parser(takes_nul=True), "NUL"),
    (Parser(dispatches="all"), "without data is no event"),
    (Parser(dispatches="text"), "still data"),
    (Parser(at_the_end=True), "never happened"),
    (Parser(mark=False), "byte order mark"),
    (Parser(errors="strict"), "replacement characters"),
    (tutorial, "Only one space after the colon"),
    (lambda chunks: [("message",)], "raised IndexError"),
]


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


BLOCKS: list[tuple[Callable[..., Any], str]] = [
    (Block(split=lambda data: [data]), "ends the field"),
    (Block(split=lambda data: data.split("\n")), "A CR ends a line"),
    (Block(split=str.splitlines), "Empty data is data"),
    (Block(split=lambda data: data.splitlines() or [""]), "str.splitlines() drops it"),
    (
        Block(split=lambda data: [line.rstrip("\u2028\n\r") for line in (data + "\n").splitlines(keepends=True)]),
        "U+2028",
    ),
    (Block(space=""), "without one of yours"),
    (Block(end="\n"), "ends with a blank line"),
    (Block(refused="\n"), "'a\\r'"),
    (Block(refused="\r\n"), "'1\\x00'"),
    (Block(refused=""), "should be a ValueError"),
    (Block(watches="type"), "should be a ValueError"),
    (Block(watches="id"), "should be a ValueError"),
    (lambda type, id, data: b"data: x\n\n", "should give a text"),
]


Relist = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Client:
    """The solution of the third exercise, or one of its mutants."""

    sends: str = "last"
    early: bool = False
    outlives: tuple[type[Exception], ...] = (httpx.TransportError,)
    at_503: str = "again"
    pause: float = 2.0
    relists: str = "reset"
    looks_at_type: bool = True
    logs: bool = True
    kind: str = "update"

    async def __call__(self, url: str, log: ClientLog, relist: Relist) -> None:
        last = log.cursor
        while True:
            sent = {"last": last, "first": log.cursor, "none": ""}[self.sends]
            with contextlib.suppress(*self.outlives):
                async with httpx.AsyncClient(**HTTP) as http:
                    with log.request() if self.logs else contextlib.nullcontext():
                        headers = {"Last-Event-ID": sent} if sent else {}
                        async with http.stream("GET", f"{url}/events", headers=headers) as response:
                            if response.status_code != 200 and self.at_503 == "returns":
                                return
                            if self.at_503 == "raises":
                                response.raise_for_status()
                            if self.relists == "always" and response.status_code == 200:
                                await relist()
                            parser = EventStreamParser(last)
                            async for chunk in response.aiter_bytes():
                                if self.early and (ids := re.findall(rb"^id: (.*)$", chunk, re.MULTILINE)):
                                    last = ids[-1].decode()
                                for event in parser.feed(chunk):
                                    if event.type == self.kind or not self.looks_at_type:
                                        log.deliver(json.loads(event.data))
                                    elif event.type == "reset" and self.relists == "reset":
                                        await relist()
                                last = last if self.early else parser.last_event_id
            if self.pause:
                await asyncio.sleep(self.pause)


async def with_httpx_sse(url: str, log: ClientLog, relist: Relist) -> None:
    """The solution as the notebook would write it."""
    last, pause = log.cursor, 2.0
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
            except httpx.TransportError:
                pass
            await asyncio.sleep(pause)


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


CLIENTS: list[tuple[Callable[..., Any], str]] = [
    (Client(sends="none"), "without Last-Event-ID"),
    (Client(sends="first"), "always 'exam-0'"),
    (Client(early=True), "kept before the event had been handled"),
    (Client(outlives=()), "when the link was cut"),
    (Client(at_503="returns"), "as a browser does"),
    (Client(at_503="raises"), "stopped at the 503"),
    (Client(pause=0.0), "requests in 15 s of 503"),
    (Client(relists="never"), "as if nothing had been lost"),
    (Client(relists="always"), "only the reset calls for it"),
    (Client(looks_at_type=False), "look at the event's type"),
    (Client(logs=False), "no request inside"),
    (phantom, "look at the event's type"),
    (deaf, "does not ask for /events"),
    (Client(kind="news"), "Nothing was delivered"),
]

HEART = ": heartbeat\n\n"


@dataclass(frozen=True)
class Loop:
    """The solution of the fourth exercise, or one of its mutants."""

    race: bool = False
    beats: str = HEART
    moves: bool = True
    start: int | None = None
    waits: bool = True
    block: str = "id: {0}\ndata: {1}\n\n"
    restless: bool = False

    async def __call__(self, journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
        position = position if self.start is None else self.start
        while True:
            news = journal.news()
            for number, text in journal.after(position):
                position = number if self.moves else position
                yield self.block.format(number, text)
            if self.race:
                news = journal.news()
            if not self.waits:
                await asyncio.sleep(0)
                continue
            try:
                await asyncio.wait_for(news, heartbeat if self.beats else None)
            except TimeoutError:
                yield self.beats
            if self.restless:
                yield self.beats


def loop(**mistake: Any) -> Callable[..., AsyncGenerator[str, None]]:
    async def stream(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
        async for text in Loop(**mistake)(journal, position, heartbeat):
            yield text

    return stream


async def ends(journal: checks.Journal, position: int, heartbeat: float) -> AsyncGenerator[str, None]:
    """Sends what there is, once."""
    for number, text in journal.after(position):
        yield f"id: {number}\ndata: {text}\n\n"


async def one_list(journal: checks.Journal, position: int, heartbeat: float) -> list[str]:
    """No generator."""
    return [text for _, text in journal.after(position)]


LOOPS: list[tuple[Callable[..., Any], str]] = [
    (loop(race=True), "while a block was being written"),
    (loop(beats=""), "no heartbeat"),
    (loop(beats="data: heartbeat\n\n"), "is the heartbeat a comment"),
    (loop(moves=False), "came twice"),
    (loop(start=0), "the next is 3"),
    (loop(waits=False), "never waits"),
    (loop(block="id: {0}\ndata: {1}\n"), "is not a block"),
    (loop(block="data: {1}\n\n"), "with id ''"),
    (loop(restless=True), "within half of one"),
    (ends, "ended by itself"),
    (one_list, "no async generator"),
]

CHECKS: dict[Callable[..., checks.Verdict], list[tuple[Callable[..., Any], str]]] = {
    checks.event_stream_parser: PARSERS,
    checks.event_block: BLOCKS,
    checks.sse_client: CLIENTS,
    checks.event_generator: LOOPS,
}


def function(answer: Callable[..., Any]) -> Callable[..., Any]:
    """What a reader would have written, a function, of one of the objects above."""
    return answer if inspect.isfunction(answer) else lambda *args: answer(*args)


SOLUTIONS: list[tuple[Callable[..., checks.Verdict], Callable[..., Any]]] = [
    (checks.event_stream_parser, Parser().__call__),
    (checks.event_block, Block().__call__),
    (checks.sse_client, Client().__call__),
    (checks.sse_client, with_httpx_sse),
    (checks.event_generator, loop()),
]
MUTANTS = [(check, function(mutant), words) for check, mutants in CHECKS.items() for mutant, words in mutants]


def stub(*_: Any) -> Any:
    """An exercise's empty function."""


async def async_stub(*_: Any) -> Any:
    """An exercise's empty coroutine function."""


@pytest.mark.parametrize("check", CHECKS)
def test_an_untouched_stub_fails_kindly(check: Callable[..., checks.Verdict]) -> None:
    """An empty stub does not pass, and is told what to do next."""
    asked = async_stub if check in (checks.sse_client, checks.event_generator) else stub
    assert repr(check(asked)).startswith("Not yet. This is still the empty stub")


@pytest.mark.parametrize(("check", "solution"), SOLUTIONS)
def test_a_solution_passes(check: Callable[..., checks.Verdict], solution: Callable[..., Any]) -> None:
    """A right answer passes."""
    verdict = check(solution)
    assert verdict, repr(verdict)
    assert repr(verdict).startswith("✓ ")


@pytest.mark.parametrize(("check", "mutant", "words"), MUTANTS, ids=[words for _, _, words in MUTANTS])
def test_a_mistake_is_named(check: Callable[..., checks.Verdict], mutant: Callable[..., Any], words: str) -> None:
    """Each wrong answer is rejected, with a sentence that says which mistake it looks like."""
    verdict = check(mutant)
    assert not verdict
    assert words in verdict.text
