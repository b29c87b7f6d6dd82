"""The checks of notebook 06: each accepts the solution, rejects the empty stub kindly, and names each mistake."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from lab import checks
from lab.bench.edits import snapshot
from lab.bench.experiment import HTTP
from lab.clients import Reset, sse


def follower(
    *,
    cursor: Callable[[str], str | None] = lambda listed: listed,
    inside: bool = True,
    verifies: bool = True,
    beside: bool = True,
    streams: bool = False,
    in_order: bool = True,
    resumes: bool = True,
    waits: bool = False,
    relists: bool = True,
    deletes: bool = True,
    quotes: bool = True,
    lists: bool = True,
) -> Callable[[str, Path], Any]:
    """The solution, or one of its mutants."""

    async def fetch(http: httpx.AsyncClient, copy: Path, path: str) -> None:
        target = copy / path
        if inside and ".." in target.parts:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        address = f"/files/{quote(path) if quotes else path}"
        while True:
            try:
                async with http.stream("GET", address) as response:
                    content = b""
                    async for chunk in response.aiter_bytes():
                        content += chunk
                        if streams:
                            target.unlink(missing_ok=True)
                            target.write_bytes(content)
            except httpx.TransportError:
                await asyncio.sleep(1)
                continue
            if response.status_code == 404:
                return
            if not verifies or f'"{hashlib.sha256(content).hexdigest()}"' == response.headers["ETag"]:
                break
            await asyncio.sleep(1)
        if beside:
            part = copy / ".part"
            part.write_bytes(content)
            part.replace(target)
        else:
            target.write_bytes(content)

    async def listed(http: httpx.AsyncClient, copy: Path) -> str:
        answer = (await http.get("/files")).json()
        names = {file["path"] for file in answer["files"]}
        if deletes:
            for path in snapshot(copy).keys() - names:
                (copy / path).unlink()
        for name in sorted(names):
            await fetch(http, copy, name)
        found: str = answer["cursor"]
        return found

    async def client(url: str, copy: Path) -> None:
        async with httpx.AsyncClient(base_url=url, **HTTP) as http, asyncio.TaskGroup() as group:
            last = cursor(await listed(http, copy)) if lists else None
            if not resumes:
                with contextlib.suppress(httpx.TransportError) if waits else contextlib.nullcontext():
                    async with http.stream("GET", "/events", params={"after": last}) as response:
                        async for _ in response.aiter_bytes():
                            await listed(http, copy)
                await asyncio.Event().wait()
            async with contextlib.aclosing(sse(url, last)) as stream:
                async for news in stream:
                    if isinstance(news, Reset):
                        if relists:
                            await listed(http, copy)
                    elif news.change == "deleted":
                        (copy / news.path).unlink(missing_ok=True)
                    elif in_order:
                        await fetch(http, copy, news.path)
                    else:
                        group.create_task(fetch(http, copy, news.path))

    return client


async def stub(url: str, copy: Path) -> None:
    """The exercise's empty mirror."""


async def ending(url: str, copy: Path) -> None:
    """A mirror that makes a copy and returns."""
    async with httpx.AsyncClient(base_url=url, **HTTP) as http:
        for file in (await http.get("/files")).json()["files"]:
            if ".." not in file["path"]:
                target = copy / file["path"]
                target.parent.mkdir(exist_ok=True)
                target.write_bytes((await http.get(f"/files/{quote(file['path'])}")).content)


async def raising(url: str, copy: Path) -> None:
    """A mirror that does not get far."""
    raise ValueError(f"not {copy.name}")


def test_an_untouched_stub_fails_kindly() -> None:
    """An empty function and an empty mirror do not pass, and are told what to do next."""
    for verdict in (checks.crossover(lambda *_: ...), checks.mirror(stub)):  # type: ignore[arg-type]  # that is the stub
        assert repr(verdict).startswith("Not yet. This is still the empty stub")


def test_the_right_crossover_passes() -> None:
    """The law of notify-then-fetch passes, written in any way."""
    assert checks.crossover(lambda request, wanted: 3 * wanted * request / (4 - 3 * wanted))


CROSSOVERS: list[tuple[Callable[[float, float], float], str]] = [
    (lambda r, w: w * r / (1 - w), "4 bytes for 3"),
    (lambda r, w: w * r / (3 / 4 - w), "this makes 3 of 4"),
    (lambda r, w: r / (4 / 3 - w), "one for every client"),
    (lambda r, w: 3 * w * r, "The share counts twice"),
    (lambda r, w: 3 * r, "right if every client wants every file"),
    (lambda r, w: (4 / 3 - w) / (w * r), "Turned round"),
    (lambda r, w: r, "For 480.0, 0.5 it gives 480.0, and should give 288"),
]


@pytest.mark.parametrize(("mutant", "words"), CROSSOVERS, ids=[words for _, words in CROSSOVERS])
def test_each_mistake_in_the_crossover_is_named(mutant: Callable[[float, float], float], words: str) -> None:
    """A formula with one mistake is rejected with a sentence about it."""
    verdict = checks.crossover(mutant)
    assert not verdict
    assert words in verdict.text


def test_a_careful_mirror_passes() -> None:
    """A mirror that lists, watches from there, verifies, renames, resumes and relists passes."""
    verdict = checks.mirror(follower())
    assert verdict, repr(verdict)


MIRRORS: list[tuple[Callable[[str, Path], Any], str]] = [
    (follower(lists=False), "still empty: list first"),
    (follower(quotes=False), "by its quoted name"),
    (follower(cursor=lambda listed: None), "from the listing's cursor, not from now"),
    (follower(inside=False), "outside of the copy"),
    (follower(verifies=False), "falsified on its way"),
    (follower(beside=False), "saw it change"),
    (follower(streams=True), "half of a file"),
    (follower(in_order=False), "A deleted file came back"),
    (follower(resumes=False), "It stopped: "),
    (follower(resumes=False, waits=True), "connect again, from the last cursor"),
    (follower(relists=False), "at a reset, list again"),
    (follower(deletes=False), "delete what is not listed"),
    (ending, "It ended"),
    (raising, "It stopped: ValueError: not copy."),
]


@pytest.mark.parametrize(("mutant", "words"), MIRRORS, ids=[words for _, words in MIRRORS])
def test_each_mistake_of_a_mirror_is_named(mutant: Callable[[str, Path], Any], words: str) -> None:
    """A mirror with one fault is rejected with a sentence about it."""
    verdict = checks.mirror(mutant)
    assert not verdict
    assert words in verdict.text
