"""The checks of notebook 06: right answers pass, however unusual, and wrong ones are told what is wrong."""

import asyncio
import contextlib
import functools
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from httpx_sse import aconnect_sse

from lab import checks
from lab.bench.edits import snapshot
from lab.bench.experiment import HTTP
from lab.clients import Reset, sse
from lab.mirror import Mirror
from tests.support_checks import Corpus, judging


def stub(*_: Any) -> Any:
    """An exercise's empty function."""


# ── from which size on ───────────────────────────────────────────────────────────────────────────────────────────────


def never_ends(request: float, wanted: float) -> float:
    while True:
        pass


async def an_async_def(request: float, wanted: float) -> float:
    return 3 * wanted * request / (4 - 3 * wanted)


def by_counting(request: float, wanted: float) -> int:
    """The first whole size at which announcing is the cheaper one."""
    return next(size for size in range(10_000) if 4 / 3 * size > wanted * (request + size))


def law(r: float, w: float) -> float:
    return w * r / (4 / 3 - w)


class Size:
    """An object that can be called."""

    def __call__(self, request: float, wanted: float) -> float:
        return law(request, wanted)


CROSSOVERS = Corpus(
    checks.crossover,
    stub,
    right={
        "the law": law,
        "without fractions": lambda r, w: 3 * w * r / (4 - 3 * w),
        "a whole number of bytes": lambda r, w: math.ceil(law(r, w)),
        "the next whole number": lambda r, w: math.floor(law(r, w)) + 1,
        "rounded": lambda r, w: round(law(r, w)),
        "counted": by_counting,
        "a fraction": lambda r, w: Fraction(w) * Fraction(r) / (Fraction(4, 3) - Fraction(w)),
        "a decimal": lambda r, w: Decimal(w) * Decimal(r) / (Decimal(4) / 3 - Decimal(w)),
        "numpy": lambda r, w: np.divide(np.float64(w) * r, 4 / 3 - w),
        "np.ceil": lambda r, w: np.ceil(law(r, w)),
        "an object": Size(),
        "a partial": functools.partial(lambda inflation, r, w: w * r / (inflation - w), 4 / 3),
        "with names": lambda request, wanted: wanted * request / (4 / 3 - wanted),
    },
    wrong={
        "no base64": (lambda r, w: w * r / (1 - w) if w < 1 else None, "4 bytes for 3"),
        "no base64, unlimited": (lambda r, w: w * r / (1 - w) if w < 1 else math.inf, "4 bytes for 3"),
        "3 of 4": (lambda r, w: w * r / (3 / 4 - w), "this makes 3 of 4"),
        "all ask": (lambda r, w: r / (4 / 3 - w), "one for every client"),
        "share twice": (lambda r, w: 3 * w * r, "The share counts twice"),
        "all want": (lambda r, w: 3 * r, "right if every client wants every file"),
        "turned round": (lambda r, w: (4 / 3 - w) / (w * r), "Turned round"),
        "signs": (lambda r, w: w * r / (w - 4 / 3), "signs are turned round"),
        "a sum": (lambda r, w: w * r / (4 / 3 + w), "not by their sum"),
        "the request": (lambda r, w: r, "For 480, 0.5 it gives 480, and should give 288."),
        "wanted requests": (lambda r, w: w * r, "it gives 240, and should give 288"),
        "a constant": (lambda r, w: 288, "For 470, 0.13 it gives 288"),
        "two off": (lambda r, w: math.ceil(law(r, w)) + 2, "it gives 290, and should give 288"),
        "1.33": (lambda r, w: w * r / (1.33 - w), "and should give"),
        "divides by zero": (lambda r, w: w * r / (1 - w), "4 bytes for 3"),
        "nothing": (lambda r, w: print(end=""), "Is there a `return`?"),
        "a word": (lambda r, w: str(law(r, w)), "and should give 288"),
        "async": (an_async_def, "async def"),
        "endless": (never_ends, "does not come to an end"),
    },
)


# ── a mirror ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def stays_inside(copy: Path, path: str) -> bool:
    return (copy / path).resolve().is_relative_to(copy.resolve())


def follower(
    *,
    cursor: Callable[[str], str | None] = lambda listed: listed,
    inside: Callable[[Path, str], bool] = stays_inside,
    verifies: bool = True,
    catches: bool = True,
    tries: float = math.inf,  # fetches of one file
    beside: bool = True,
    streams: bool = False,
    shared: bool = False,  # streams into one file beside, from several tasks
    in_order: bool = True,
    resumes: bool = True,
    waits: bool = False,
    relists: bool = True,
    deletes: bool = True,
    quotes: bool = True,
    lists: bool = True,
    lets_go: bool = True,  # of what is gone
    raises: bool = False,  # for what is gone
    pause: Callable[[], Any] = lambda: asyncio.sleep(1),
) -> Callable[[str, Path], Any]:
    """The solution, or one of its mutants."""

    async def fetch(http: httpx.AsyncClient, copy: Path, path: str) -> None:
        target = copy / path
        if not inside(copy, path):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        address = f"/files/{quote(path) if quotes else path}"
        failures, part = 0, copy / ".part"
        while failures < tries:
            failures += 1
            try:
                async with http.stream("GET", address) as response:
                    content = b""
                    with part.open("wb") if shared else contextlib.nullcontext() as file:
                        async for chunk in response.aiter_bytes():
                            content += chunk
                            if streams:
                                target.unlink(missing_ok=True)
                                target.write_bytes(content)
                            if file:
                                file.write(chunk)
                                file.flush()
            except httpx.TransportError:
                if not catches:
                    raise
                await pause()
                continue
            if raises:
                response.raise_for_status()
            if response.status_code == 404 and lets_go:
                return
            digest = f'"{hashlib.sha256(content).hexdigest()}"'
            if response.status_code == 200 and (not verifies or digest == response.headers["ETag"]):
                break
            await pause()
        else:
            return
        if beside:
            if not shared:
                part.write_bytes(content)
            with contextlib.suppress(FileNotFoundError) if shared else contextlib.nullcontext():
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
                    elif in_order and not shared:
                        await fetch(http, copy, news.path)
                    else:
                        group.create_task(fetch(http, copy, news.path))

    return client


async def ending(url: str, copy: Path) -> None:
    """A mirror that makes a copy and returns."""
    async with httpx.AsyncClient(base_url=url, **HTTP) as http:
        for file in (await http.get("/files")).json()["files"]:
            if stays_inside(copy, file["path"]):
                target = copy / file["path"]
                target.parent.mkdir(exist_ok=True)
                target.write_bytes((await http.get(f"/files/{quote(file['path'])}")).content)


async def raising(url: str, copy: Path) -> None:
    """A mirror that does not get far."""
    raise ValueError(f"not {copy.name}")


async def asking_in_vain(url: str, copy: Path) -> None:
    """A mirror by a client that blocks."""
    httpx.get(f"{url}/files")  # noqa: ASYNC210  # that is the mistake


async def busy_without_end(url: str, copy: Path) -> None:
    while True:
        pass


async def busy_with_awaits(url: str, copy: Path) -> None:
    while True:  # noqa: ASYNC110  # that is the mistake
        await asyncio.sleep(0)


def plain_function(url: str, copy: Path) -> str:
    return f"{url} {copy}"


async def asking_elsewhere(url: str, copy: Path) -> None:
    async with httpx.AsyncClient(**HTTP) as http:
        (await http.get("/files")).json()


def put(copy: Path, path: str, content: bytes) -> None:
    """Write by a new name of its own, visible or not, then rename."""
    target = copy / path
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=copy.parent)
    os.write(handle, content)
    os.close(handle)
    Path(name).replace(target)


async def whole(http: httpx.AsyncClient, copy: Path, path: str, sha256: str) -> None:
    """Fetch a version that is known by its hash, unless there is another one by now."""
    content = (await http.get(f"/files/{quote(path)}")).raise_for_status().content
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not what was announced")
    put(copy, path, content)


async def by_listings(url: str, copy: Path) -> None:
    """It asks for the listing each second, and never watches."""
    async with httpx.AsyncClient(base_url=url, **HTTP) as http:
        while True:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                files = {file["path"]: file["sha256"] for file in (await http.get("/files")).json()["files"]}
                files = {path: sha256 for path, sha256 in files.items() if stays_inside(copy, path)}
                for path in snapshot(copy).keys() - files.keys():
                    (copy / path).unlink()
                for path, sha256 in files.items() - snapshot(copy).items():
                    await whole(http, copy, path, sha256)
            await asyncio.sleep(1)


async def starting_over(url: str, copy: Path) -> None:
    """Any failure leads back to the listing."""
    while True:
        with contextlib.suppress(httpx.HTTPError, ValueError):
            async with httpx.AsyncClient(base_url=url, **HTTP) as http:
                listing = (await http.get("/files")).json()
                files = {f["path"]: f["sha256"] for f in listing["files"] if stays_inside(copy, f["path"])}
                for path in snapshot(copy).keys() - files.keys():
                    (copy / path).unlink()
                for path, sha256 in files.items() - snapshot(copy).items():
                    await whole(http, copy, path, sha256)
                question = {"Last-Event-ID": listing["cursor"]}
                async with aconnect_sse(http, "GET", "/events", headers=question) as source:
                    async for event in source.aiter_sse():
                        if event.event == "reset":
                            break
                        if event.event != "update":
                            continue
                        update = event.json()
                        if update["change"] == "deleted":
                            (copy / update["path"]).unlink(missing_ok=True)
                        else:
                            await whole(http, copy, update["path"], update["sha256"])
        await asyncio.sleep(0.5)


async def resuming(url: str, copy: Path) -> None:
    """A download that was cut off goes on where it ended, if the file is still the same version."""

    async def fetch(http: httpx.AsyncClient, path: str) -> None:
        have, etag = b"", ""
        while stays_inside(copy, path):
            headers = {"Range": f"bytes={len(have)}-", "If-Range": etag} if have else {}
            with contextlib.suppress(httpx.TransportError):
                async with http.stream("GET", f"/files/{quote(path)}", headers=headers) as answer:
                    if answer.status_code == 404:
                        return
                    have, etag = have if answer.status_code == 206 else b"", answer.headers["ETag"]
                    async for chunk in answer.aiter_raw():
                        have += chunk
                if f'"{hashlib.sha256(have).hexdigest()}"' == etag:
                    put(copy, path, have)
                    return
                have = b""
            await asyncio.sleep(0.5)

    async with httpx.AsyncClient(base_url=url, **HTTP) as http:

        async def listed() -> str:
            listing = (await http.get("/files")).json()
            for path in snapshot(copy).keys() - {file["path"] for file in listing["files"]}:
                (copy / path).unlink()
            for file in listing["files"]:
                await fetch(http, file["path"])
            return str(listing["cursor"])

        async with contextlib.aclosing(sse(url, await listed())) as stream:
            async for news in stream:
                if isinstance(news, Reset):
                    await listed()
                elif news.change == "deleted":
                    (copy / news.path).unlink(missing_ok=True)
                else:
                    await fetch(http, news.path)


async def a_task_for_each_path(url: str, copy: Path) -> None:
    """Paths do not wait for each other; what happens to one path happens in order, by a lock of its own."""
    locks: dict[str, asyncio.Lock] = {}

    async def apply(http: httpx.AsyncClient, path: str, change: str) -> None:
        async with locks.setdefault(path, asyncio.Lock()):
            while stays_inside(copy, path):
                if change == "deleted":
                    (copy / path).unlink(missing_ok=True)
                    return
                with contextlib.suppress(httpx.TransportError):
                    answer = await http.get(f"/files/{quote(path)}")
                    if answer.status_code == 404:
                        return
                    if f'"{hashlib.sha256(answer.content).hexdigest()}"' == answer.headers["etag"]:
                        put(copy, path, answer.content)
                        return
                await asyncio.sleep(0.3)

    async with httpx.AsyncClient(base_url=url, **HTTP) as http, asyncio.TaskGroup() as group:

        async def listed() -> str:
            listing = (await http.get("/files")).json()
            names = [file["path"] for file in listing["files"]]
            for path in snapshot(copy).keys() - set(names):
                group.create_task(apply(http, path, "deleted"))
            for path in reversed(names):
                group.create_task(apply(http, path, "modified"))
            return str(listing["cursor"])

        async with contextlib.aclosing(sse(url, await listed())) as stream:
            async for news in stream:
                if isinstance(news, Reset):
                    await listed()
                else:
                    group.create_task(apply(http, news.path, news.change))


async def the_product(url: str, copy: Path) -> None:
    async with contextlib.aclosing(Mirror(url, copy).follow()) as changes:
        async for _ in changes:
            pass


class Careful:
    """An object that can be called."""

    async def __call__(self, url: str, copy: Path) -> None:
        await follower()(url, copy)


def prefix(copy: Path, path: str) -> bool:
    return os.path.normpath(copy / path).startswith(str(copy))


MIRRORS = Corpus(
    checks.mirror,
    stub,
    right={
        "the solution": follower(),
        "a listing each second": by_listings,
        "starting over": starting_over,
        "resuming": resuming,
        "a task for each path": a_task_for_each_path,
        "the product": the_product,
        "an object": Careful(),
        "a partial": functools.partial(lambda make, url, copy: make()(url, copy), follower),
        "a lambda": lambda url, copy: follower()(url, copy),
        "patient": follower(pause=lambda: asyncio.sleep(5)),
    },
    wrong={
        "no list": (follower(lists=False), "still empty: list first"),
        "no quotes": (follower(quotes=False), "was asked for as “b/c d”"),
        "from now": (follower(cursor=lambda listed: None), "from the listing's cursor, not from now"),
        "from the oldest": (follower(lists=False, cursor=lambda listed: "0"), "list first"),
        "believes names": (follower(inside=lambda copy, path: True), "a name with “..”"),
        "startswith": (follower(inside=prefix), "letter by letter"),
        "no absolute names": (follower(inside=lambda copy, path: ".." not in path), "an absolute name"),
        "no hash": (follower(verifies=False), "falsified on its way, and the copy keeps it"),
        "one try": (follower(tries=1), "gave up after 1 attempt:"),
        "two tries": (follower(tries=2), "gave up after 2 attempts:"),
        "in place": (follower(beside=False), "saw it change"),
        "half": (follower(streams=True), "half of “"),
        "one part for all": (follower(shared=True), "a file of its own to write to"),
        "out of order": (follower(in_order=False), "A deleted file came back"),
        "404 without end": (follower(lets_go=False), "after a 404 let it go"),
        "404 raises": (follower(raises=True), "HTTPStatusError"),
        "no errors caught": (follower(catches=False), "must not end the mirror: catch that"),
        "no error of the stream caught": (follower(resumes=False), "must not end the mirror: catch that"),
        "waits for nothing": (follower(resumes=False, waits=True), "connect again, from the last cursor"),
        "no relisting": (follower(relists=False), "at a reset, list again"),
        "no deletions": (follower(deletes=False), "delete what is not listed"),
        "ends": (ending, "It ended"),
        "raises": (raising, "It raised ValueError: not copy,\nin line"),
        "another address": (asking_elsewhere, "UnsupportedProtocol"),
        "blocks": (asking_in_vain, "It waits without `await`"),
        "time.sleep": (follower(pause=lambda: time.sleep(1)), "It waits by `time.sleep(1)`"),
        "endless": (busy_without_end, "does not come to an end"),
        "endless awaits": (busy_with_awaits, "does not come to an end"),
        "a plain function": (plain_function, "It is a plain `def`"),
    },
)  # fmt: skip

CORPORA = [CROSSOVERS, MIRRORS]
test_right, test_wrong, test_no_answer = judging(CORPORA)
