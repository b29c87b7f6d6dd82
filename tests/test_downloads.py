"""The download of one file: whole, on condition, by ranges, while it changes or grows, and what is not there."""

import asyncio
import contextlib
import errno
import hashlib
import itertools
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import downloads
from servers.background import serve
from servers.downloads import CHUNK, REMEMBERED, Downloads, requested_range
from servers.feed import Feed
from servers.file_updates import create_app
from servers.tree import Tree
from tests.support import Raw, http, on_a_loop, until
from tests.support_files import directory, rescan, served, sha256

__all__ = ["directory"]  # a fixture

LARGE = 3 * CHUNK + 17
HUGE = 64 * CHUNK  # more than the kernel's buffers hold


# --- files ---


@pytest.mark.parametrize("size", [0, 1, 1000, CHUNK, CHUNK + 1, LARGE])
def test_a_file_comes_with_its_hash(directory: Path, size: int) -> None:
    """GET has the bytes and their SHA-256 as a strong ETag, HEAD the same headers, If-None-Match leads to 304."""
    content = random.Random(size).randbytes(size)
    (directory / "f").write_bytes(content)

    @on_a_loop
    async def body() -> None:
        async with served(directory) as client:
            answer, head = await client.get("/files/f"), await client.head("/files/f")
            assert answer.content == content
            assert answer.headers["etag"] == f'"{sha256(content)}"'
            assert answer.headers["content-length"] == f"{size}"
            assert head.content == b""
            for name in ("etag", "content-length", "accept-ranges", "content-type", "x-content-type-options"):
                assert head.headers[name] == answer.headers[name]
            for method in ("GET", "HEAD"):
                same = await client.request(method, "/files/f", headers={"If-None-Match": answer.headers["etag"]})
                assert (same.status_code, same.content) == (304, b"")
                assert same.headers["etag"] == answer.headers["etag"]
            other = await client.get("/files/f", headers={"If-None-Match": '"x"'})
            assert other.content == content

    body()


@pytest.mark.parametrize("size", [100, LARGE])
def test_ranges(directory: Path, size: int) -> None:
    """One range is 206 with its Content-Range, none of the bytes is 416, and with another If-Range it is all of it."""
    content = random.Random(size).randbytes(size)
    (directory / "f").write_bytes(content)

    @on_a_loop
    async def body() -> None:
        async with served(directory) as client:

            async def ask(header: str, **more: str) -> httpx.Response:
                return await client.get("/files/f", headers={"Range": header} | more)

            for header, part in {
                "bytes=0-0": slice(0, 1),
                "bytes=10-19": slice(10, 20),
                "bytes=50-": slice(50, size),
                "bytes=-7": slice(size - 7, size),
                f"bytes=-{size + 5}": slice(0, size),
                f"bytes=3-{10**30}": slice(3, size),
            }.items():
                answer = await ask(header)
                assert (answer.status_code, answer.content) == (206, content[part]), header
                assert answer.headers["content-range"] == f"bytes {part.start}-{part.stop - 1}/{size}"
                assert answer.headers["etag"] == f'"{sha256(content)}"'
            for header in (f"bytes={size}-", "bytes=-0", f"bytes={10**40}-"):
                answer = await ask(header)
                assert (answer.status_code, answer.content) == (416, b""), header
                assert answer.headers["content-range"] == f"bytes */{size}"
            for header in (
                "bytes=5-4",
                "bytes=1-2,4-5",
                "lines=1-2",
                "bytes=",
                "bytes=-",
                "bytes=x",
                "bytes=" + "9" * 5000,
            ):
                answer = await ask(header)
                assert (answer.status_code, answer.content) == (200, content), header
            etag = f'"{sha256(content)}"'
            assert (await ask("bytes=0-0", **{"If-Range": etag})).status_code == 206
            for other in ('"x"', f"W/{etag}", "Wed, 25 Nov 2026 11:00:00 GMT"):
                answer = await ask("bytes=0-0", **{"If-Range": other})
                assert (answer.status_code, answer.content) == (200, content)
            assert (await ask("bytes=0-0", **{"If-None-Match": etag})).status_code == 304
            head = await client.head("/files/f", headers={"Range": "bytes=0-0"})
            assert (head.status_code, head.headers["content-length"]) == (200, f"{size}")

    body()


@given(size=st.integers(0, 30), first=st.integers(0, 40), length=st.integers(0, 40))
@settings(deadline=None)
def test_a_range_is_never_beyond_the_file(size: int, first: int, length: int) -> None:
    """Whatever is asked for, what is given is what slicing gives, and empty means that there is none."""
    content = bytes(range(size))
    part = requested_range(f"bytes={first}-{first + length}", size)
    assert part is not None
    assert content[part.start : part.stop] == content[first : first + length + 1]
    assert (part.start >= part.stop) == (first >= size)
    suffix = requested_range(f"bytes=-{length}", size)
    assert suffix is not None
    assert content[suffix.start : suffix.stop] == (content[-length:] if length else b"")


@on_a_loop
async def test_the_etag_is_of_the_bytes_that_are_sent(directory: Path) -> None:
    """A file that has changed since the look is served as it is, with its own hash; one that has come is not known."""
    async with served(directory) as client:
        await asyncio.to_thread((directory / "a" / "b.csv").write_text, "other")  # same size
        answer = await client.get("/files/a/b.csv")
        assert answer.content == b"other"
        assert answer.headers["etag"] == f'"{sha256(b"other")}"'
        await asyncio.to_thread((directory / "new").write_text, "x")
        assert (await client.get("/files/new")).status_code == 404


def settle(tree: Tree, settled: bool) -> None:
    """Have the tree believe, or not, that the stat of what it knows tells of every change."""
    tree.files = {path: replace(file, settled=settled) for path, file in tree.files.items()}


async def broken_off(client: httpx.AsyncClient, path: str, meddle: Callable[[], None], headers: dict[str, str]) -> int:
    """The bytes of a body that arrive until the server breaks it off, when something happens after the first ones."""
    received = 0
    async with client.stream("GET", path, headers=headers) as answer:
        try:
            async for data in answer.aiter_raw():
                if not received:
                    meddle()
                received += len(data)
        except httpx.RemoteProtocolError:
            return received
    raise AssertionError("it looks complete")


def meddled(file: Path, change: str) -> Callable[[], None]:
    """What does this to a file of HUGE bytes when it is called; of its bytes only the last ones are others then."""

    def meddle() -> None:
        with file.open("ab" if change == "append" else "r+b") as open_file:
            if change == "truncate":
                open_file.truncate(7)
            elif change != "touch":
                open_file.seek(-5, os.SEEK_END)
                open_file.write(b"other")
        if change == "touch":
            os.utime(file, (1, 1))
            file.chmod(0o600)

    return meddle


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("change", ["overwrite", "truncate"])
def test_a_large_file_that_changes_while_it_is_served_never_looks_complete(
    directory: Path, change: str, partial: bool, settled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection breaks before the last byte, a log line names the file, and what a look finds comes next."""
    file = directory / "f\n"
    file.write_bytes(bytes(HUGE))
    feed, tree = Feed(epoch="e"), Tree(directory)
    settle(tree, settled)

    @on_a_loop
    async def body() -> None:
        with serve(create_app(feed, tree), quiet=False) as server:
            async with http(server) as client:
                headers = {"Range": f"bytes=1-{HUGE - 1}"} if partial else {}
                received = await broken_off(client, "/files/f%0A", meddled(file, change), headers)
                assert 0 < received < HUGE - partial
                rescan(feed, tree)
                again = await client.get("/files/f%0A")
                assert again.content == await asyncio.to_thread(file.read_bytes)
                assert server.errors == []

    with caplog.at_level(logging.WARNING, "servers"):
        body()
    assert caplog.messages == ["broke off 'f\\n': the file changed while it was read"]


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("change", ["append", "touch"])
def test_a_large_file_that_only_grows_or_is_touched_arrives(
    directory: Path, change: str, partial: bool, settled: bool
) -> None:
    """What was announced is what is served, to the byte, then and in the next request, until a look finds more."""
    file = directory / "f"
    content = random.Random(1).randbytes(HUGE)
    file.write_bytes(content)
    feed, tree = Feed(epoch="e"), Tree(directory)
    settle(tree, settled)

    @on_a_loop
    async def body() -> None:
        with serve(create_app(feed, tree)) as server:
            async with http(server) as client:
                headers = {"Range": "bytes=1-"} if partial else {}
                meddle: Callable[[], None] | None = meddled(file, change)
                async with client.stream("GET", "/files/f", headers=headers) as answer:
                    assert answer.headers["etag"] == f'"{sha256(content)}"'
                    received = b""
                    async for data in answer.aiter_raw():
                        if meddle:
                            meddle()
                            meddle = None
                        received += data
                assert received == content[partial:]
                assert (await client.get("/files/f")).content == content
                rescan(feed, tree)
                assert (await client.get("/files/f")).content == await asyncio.to_thread(file.read_bytes)

    body()


@on_a_loop
async def test_a_part_that_was_another_for_a_moment_does_not_pass(directory: Path) -> None:
    """Of a file that is touched the part is read again: the hash of the whole says nothing of what was sent."""
    path = directory / "f"
    path.write_bytes(bytes(4 * CHUNK))
    tree = Tree(directory)
    settle(tree, settled=True)
    for meddle in (False, True):
        file, known = tree.open("f")
        content = downloads.FileContent(Downloads(tree), "f", file, known, slice(1, 3 * CHUNK), 206, {})
        sent = 0
        with file, path.open("r+b", buffering=0) as other:
            try:
                async for piece in content.pieces():
                    other.seek(2 * CHUNK)
                    other.write(b"other" if meddle and not sent else bytes(5))
                    sent += len(piece)
            except downloads.ChangedMeanwhile:
                assert meddle
        assert (sent == 3 * CHUNK - 1) != meddle


@on_a_loop
async def test_a_download_reads_a_file_once(directory: Path) -> None:
    """Whoever fetches a fresh large file makes the server read and hash each of its bytes once, and HEAD none."""
    (directory / "f").write_bytes(bytes(LARGE))
    read: list[int] = []
    real = downloads.FileContent.read

    def counted(self: downloads.FileContent, at: int, size: int, digest: Any) -> bytes:
        read.append(size)
        return real(self, at, size, digest)

    tree = Tree(directory)
    whole, calls = tree.read, list[object]()

    def whole_again(*arguments: Any) -> Any:
        calls.append(arguments)
        return whole(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads.FileContent, "read", counted)
        patch.setattr(tree, "read", whole_again)
        with serve(create_app(Feed(epoch="e"), tree)) as server:
            async with http(server) as client:
                for _ in range(3):
                    assert (await client.head("/files/f")).headers["content-length"] == f"{LARGE}"
                assert read == []
                assert (await client.get("/files/f")).content == bytes(LARGE)
    assert sum(read) == LARGE
    assert calls == []


@on_a_loop
async def test_of_a_log_that_grows_only_what_has_come_is_read(directory: Path) -> None:
    """A client that has the beginning gets the rest by a range, and the server reads no more than that."""
    file, rng = directory / "log", random.Random(2)
    content = rng.randbytes(LARGE)
    file.write_bytes(content)
    feed, tree = Feed(epoch="e"), Tree(directory)
    read: list[int] = []
    real = downloads.FileContent.read

    def counted(self: downloads.FileContent, at: int, size: int, digest: Any) -> bytes:
        read.append(size)
        return real(self, at, size, digest)

    with pytest.MonkeyPatch.context() as patch, serve(create_app(feed, tree)) as server:
        patch.setattr(downloads.FileContent, "read", counted)
        async with http(server) as client:
            assert (await client.get("/files/log")).content == content
            for _ in range(3 * REMEMBERED):
                line = rng.randbytes(100)
                with file.open("ab") as open_file:
                    open_file.write(line)
                rescan(feed, tree)
                settle(tree, settled=False)
                read.clear()
                etag = f'"{sha256(content + line)}"'
                headers = {"Range": f"bytes={len(content)}-", "If-Match": etag, "If-Range": etag}
                answer = await client.get("/files/log", headers=headers)
                assert (answer.status_code, answer.content) == (206, line)
                assert sum(read) == len(line)
                content += line


@on_a_loop
async def test_a_beginning_that_is_known_proves_what_comes_behind_it(directory: Path) -> None:
    """A part behind it passes whatever has become of the beginning since, and does not when it is another itself."""
    path, content = directory / "f", random.Random(3).randbytes(LARGE)
    path.write_bytes(content)
    tree = Tree(directory)
    settle(tree, settled=False)
    known = Downloads(tree)
    file, version = tree.open("f")
    with file, path.open("r+b", buffering=0) as other:
        stat = os.fstat(file.fileno())
        known.remember((stat.st_dev, stat.st_ino), CHUNK, hashlib.sha256(content[:CHUNK]))
        for at, passes in ((5, True), (LARGE - 10, False)):
            other.seek(at)
            other.write(b"other")
            part = downloads.FileContent(known, "f", file, version, slice(CHUNK, LARGE), 206, {})
            came = b""
            with contextlib.suppress(downloads.ChangedMeanwhile):
                async for piece in part.pieces():
                    came += piece
            assert (came == content[CHUNK:]) == passes
            assert passes or len(came) < LARGE - CHUNK


@on_a_loop
async def test_a_beginning_that_is_another_now_spoils_one_part_only(directory: Path) -> None:
    """A part of a file that was overwritten in place is broken off once, and comes when it is asked for again."""
    path, content = directory / "f", random.Random(4).randbytes(LARGE)
    path.write_bytes(bytes(LARGE))
    known = Downloads(Tree(directory))
    with path.open("r+b", buffering=0) as file:
        stat = os.fstat(file.fileno())
        known.remember((stat.st_dev, stat.st_ino), CHUNK, hashlib.sha256(bytes(CHUNK)))
        file.write(content)
    tree = Tree(directory)
    settle(tree, settled=False)
    came = b""
    for complete in (False, True):
        content_file, version = tree.open("f")
        with content_file:
            part = downloads.FileContent(known, "f", content_file, version, slice(CHUNK, LARGE), 206, {})
            with contextlib.nullcontext() if complete else pytest.raises(downloads.ChangedMeanwhile):
                came = b"".join([piece async for piece in part.pieces()])
    assert came == content[CHUNK:]


def test_what_is_remembered_of_files_is_bounded(directory: Path) -> None:
    """Of each file the latest few beginnings are known, of the latest few files."""
    known = Downloads(Tree(directory))
    for number in range(3 * downloads.GROWING):
        for size in range(1, 3 * REMEMBERED):
            known.remember((0, number), size, hashlib.sha256(bytes(size)))
    assert len(known.prefixes) == downloads.GROWING
    assert {len(sizes) for sizes in known.prefixes.values()} == {REMEMBERED}
    last = (0, 3 * downloads.GROWING - 1)
    size, digest = known.nearest(last, 3 * REMEMBERED)
    assert (size, digest.hexdigest()) == (3 * REMEMBERED - 1, sha256(bytes(size)))
    assert known.nearest(last, 1)[0] == known.nearest((1, 1), 99)[0] == 0


@on_a_loop
async def test_many_who_ask_for_a_huge_file_that_grows_delay_nobody(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While twenty heads and ranges of it are asked for, a small file comes, and all of it is not read by then."""
    huge, at_the_end, go_on = 2**26, list[int](), threading.Event()
    in_thread = downloads.in_thread

    async def but_the_end(pool: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        if function.__name__ == "read" and arguments[0] >= huge - CHUNK:
            at_the_end.append(arguments[0])
            while not go_on.is_set():  # noqa: ASYNC110  # set by another thread
                await asyncio.sleep(0.01)
        return await in_thread(pool, function, *arguments)

    monkeypatch.setattr(downloads, "in_thread", but_the_end)
    with (directory / "huge").open("wb") as file:
        file.truncate(huge)
    tree = Tree(directory)
    monkeypatch.setattr(tree, "read", None)  # which would hash it, before an answer begins
    with serve(create_app(Feed(epoch="e"), tree)) as server:
        async with http(server) as client:
            with (directory / "huge").open("ab") as file:
                file.write(b"more")
            heads = await asyncio.gather(*(client.head("/files/huge") for _ in range(20)))
            assert {head.headers["content-length"] for head in heads} == {f"{huge}"}
            parts = [asyncio.create_task(client.get("/files/huge", headers={"Range": "bytes=0-0"})) for _ in range(5)]
            assert (await client.get("/files/a/b.csv")).text == "hello"
            await until(lambda: len(at_the_end) == 5)
            assert not any(part.done() for part in parts)
            go_on.set()
            assert {(await part).content for part in parts} == {b"\0"}


# --- conditions ---


@on_a_loop
async def test_conditions_hold_in_the_order_of_the_rfc(directory: Path) -> None:
    """If-Match before If-None-Match before Range; what holds leads on, and dates count where no tag is given."""
    os.utime(directory / "a" / "b.csv", (1, 1_700_000_000.5))
    async with served(directory) as client:
        first = await client.get("/files/a/b.csv")
        etag, modified = first.headers["etag"], first.headers["last-modified"]
        assert modified == formatdate(1_700_000_000, usegmt=True)
        earlier, later = formatdate(1_699_999_999, usegmt=True), formatdate(1_700_000_001, usegmt=True)
        for status, headers in [
            (200, {"If-Match": etag}),
            (200, {"If-Match": "*"}),
            (200, {"If-Match": f'"x", {etag}'}),
            (412, {"If-Match": '"x"'}),
            (412, {"If-Match": f"W/{etag}"}),  # it compares strongly (section 13.1.1)
            (412, {"If-Match": "W/*"}),
            (412, {"If-Match": ""}),
            (412, {"If-Match": '"x"', "If-None-Match": etag, "Range": "bytes=0-0"}),
            (304, {"If-Match": etag, "If-None-Match": etag, "Range": "bytes=0-0"}),
            (206, {"If-Match": etag, "If-None-Match": '"x"', "Range": "bytes=0-0"}),
            (412, {"If-Match": '"x"', "Range": "bytes=9-"}),
            (416, {"If-Match": etag, "Range": "bytes=9-"}),
            (304, {"If-None-Match": "*"}),
            (304, {"If-None-Match": f"W/{etag}"}),
            (412, {"If-Unmodified-Since": earlier}),
            (200, {"If-Unmodified-Since": modified}),
            (200, {"If-Unmodified-Since": later}),
            (200, {"If-Unmodified-Since": "yesterday"}),
            (200, {"If-Unmodified-Since": earlier, "If-Match": etag}),
            (304, {"If-Modified-Since": modified}),
            (200, {"If-Modified-Since": later}),  # a time stamp can be set back: only the very one that was told
            (200, {"If-Modified-Since": modified, "If-None-Match": '"x"'}),
            (200, {"Range": "bytes=0-0", "If-Range": modified}),
        ]:
            answer = await client.get("/files/a/b.csv", headers=headers)
            assert (answer.status_code, answer.headers["etag"]) == (status, etag), headers
            if "Range" not in headers:
                head = await client.head("/files/a/b.csv", headers=headers)
                assert (head.status_code, head.headers["etag"]) == (status, etag), headers
        assert (await client.get("/files/none", headers={"If-Match": "*"})).status_code == 404


@on_a_loop
async def test_a_time_that_proves_nothing_is_not_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that has just changed, or will only have, there is no Last-Modified, and conditions on it hold not."""
    monkeypatch.setattr(downloads, "YOUNG", 60.0)
    os.utime(directory / "a" / "b.csv", (1, time.time() + 1000))
    async with served(directory) as client:
        for path in ("a/b.csv", "empty"):
            answer = await client.get(f"/files/{path}", headers={"If-Modified-Since": formatdate(usegmt=True)})
            assert (answer.status_code, "last-modified" in answer.headers) == (200, False)


@on_a_loop
async def test_only_get_and_head_are_allowed_and_a_query_is_no_part_of_the_name(directory: Path) -> None:
    """Other methods are 405 and told what is allowed; a query is ignored; HTTP/1.0 gets a body without chunks."""
    (directory / "large").write_bytes(bytes(LARGE))
    tree = Tree(directory)
    with serve(create_app(Feed(epoch="e"), tree)) as server:
        async with http(server) as client:
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                answer = await client.request(method, "/files/a/b.csv")
                assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
            assert (await client.get("/files/a/b.csv?version=2")).text == "hello"
        for path, size in (("a/b.csv", 5), ("large", LARGE)):
            with Raw(server) as raw:
                raw.send(f"GET /files/{path} HTTP/1.0\r\n\r\n".encode())
                head, _, body = (await raw.read_all()).partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head.lower()
            assert (f"content-length: {size}".encode() in head, len(body)) == (True, size)


# --- small files, and clients that leave ---


def test_a_small_file_that_keeps_changing_is_never_torn(directory: Path) -> None:
    """While a file is rewritten in place all the time, every answer's bytes are those of its ETag, or it is 503."""
    file, stop = directory / "f", threading.Event()
    file.write_bytes(bytes(CHUNK))

    def rewrite() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with file.open("r+b") as open_file:
                open_file.write(number.to_bytes(4) * (CHUNK // 4))

    thread = threading.Thread(target=rewrite)

    @on_a_loop
    async def body() -> None:
        async with served(directory) as client:
            statuses = set()
            for _ in range(50):
                answer = await client.get("/files/f")
                statuses.add(answer.status_code)
                if answer.status_code == 200:
                    assert answer.headers["etag"] == f'"{sha256(answer.content)}"'
                else:
                    assert answer.headers["retry-after"]
            assert statuses <= {200, 503}

    thread.start()
    try:
        body()
    finally:
        stop.set()
        thread.join()


def test_a_client_that_leaves_a_download_leaves_nothing_behind(directory: Path) -> None:
    """When the client of a large file goes, the file is closed, and nothing is logged as an error."""
    (directory / "f").write_bytes(bytes(200 * CHUNK))

    def held() -> list[Path]:
        links = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(descriptor.readlink())
        return [link for link in links if link == directory / "f"]

    @on_a_loop
    async def body() -> None:
        with serve(create_app(Feed(), Tree(directory))) as server:
            for leave in (Raw.reset, lambda raw: raw.socket.close()):
                raw = Raw(server)
                raw.send(b"GET /files/f HTTP/1.1\r\nHost: x\r\n\r\n")
                await raw.read_until(b"\r\n\r\n")
                assert held()
                leave(raw)
                await until(lambda: not held())

    body()


# --- what is not there ---


NOT_THERE = [
    "/files/",
    "/files/a",
    "/files/a/",
    "/files/none",
    "/files/a/b.csv/c",
    "/files/../secret",
    "/files/%2e%2e/secret",
    "/files/a/%2e%2e/%2e%2e/secret",
    "/files/a/../../secret",
    "/files/..%2fsecret",
    "/files/%2Fetc%2Fpasswd",
    "/files//etc/passwd",
    "/files/a//b.csv",
    "/files/./a/b.csv",
    "/files/a%00/b.csv",
    "/files/a/b.csv%00",
    "/files/..%5csecret",
    "/files/..\\secret",
    "/files/a%5Cb.csv",
    "/files/%ff%fe",
    "/files/%c0%ae%c0%ae/secret",
    "/files/" + 300 * "x",
    "/files/" + 300 * "x/",
    "/files/link",
    "/files/inner",
    "/files/up/secret",
    "/files/folder/b.csv",
    "/files/folder%2Fb.csv",
    "/files/dangling",
    "/files/loop/x",
    "/files/fifo",
    "/files/socket",
    "/files/null",
    "/files/caf%E9",
    "/files%2Fa%2Fb.csv",
]


def test_what_is_no_regular_file_inside_the_tree_is_not_there(directory: Path) -> None:
    """Traversal in any spelling, links of all kinds, directories, pipes, sockets, devices: refused, and not opened."""
    (directory.parent / "secret").write_text("secret")
    (directory / "link").symlink_to("../secret")
    (directory / "inner").symlink_to("a/b.csv")
    (directory / "up").symlink_to("..")
    (directory / "folder").symlink_to("a")
    (directory / "dangling").symlink_to("nowhere")
    (directory / "loop").symlink_to("loop")
    os.mkfifo(directory / "fifo")
    Path(os.fsdecode(os.fsencode(directory) + b"/caf\xe9")).write_text("not UTF-8")
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # a container may not
            os.mknod(directory / "null", 0o20644, os.makedev(1, 3))

    @on_a_loop
    async def body() -> None:
        with socket.socket(socket.AF_UNIX) as listener, serve(create_app(Feed(), Tree(directory))) as server:
            listener.bind(str(directory / "socket"))
            for method, target in itertools.product(("GET", "HEAD"), NOT_THERE):
                with Raw(server) as raw:  # as it stands: a client would tidy the path
                    raw.send(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                    answer = await raw.read_all()
                assert answer.split(b" ")[1] in (b"404", b"400"), (target, answer)
                assert b"secret" not in answer, target
                assert b"hello" not in answer, target
            assert server.errors == []

    body()


def test_a_directory_that_becomes_a_link_is_not_followed(directory: Path) -> None:
    """However the tree is changed under the requests, nothing outside of it is ever served."""
    outside = directory.parent / "outside"
    outside.mkdir()
    (outside / "b.csv").write_text("secret")
    stop = threading.Event()

    def swap() -> None:
        inside, link = directory / "a", directory / "elsewhere"
        while not stop.is_set():
            inside.rename(link)
            inside.symlink_to(outside)
            inside.unlink()
            link.rename(inside)

    thread = threading.Thread(target=swap)

    @on_a_loop
    async def body() -> None:
        async with served(directory) as client:
            answers = [await client.get("/files/a/b.csv") for _ in range(300)]
        assert {answer.status_code for answer in answers} <= {200, 404}
        assert {answer.text for answer in answers if answer.status_code == 200} <= {"hello"}

    thread.start()
    try:
        body()
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "name", ["two\nlines", 'quote"s', "<script>alert(1)</script>", "50%", "%2e%2e", "a?b#c", "ü/日本", "\\", " "]
)
def test_any_other_name_is_served(directory: Path, name: str) -> None:
    """A name with a line break, a quote, markup or a percent sign is a name as any other, and in no header."""
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("here")

    @on_a_loop
    async def body() -> None:
        async with served(directory) as client:
            listed = [file["path"] for file in (await client.get("/files")).json()["files"]]
            assert name in listed
            answer = await client.get(f"/files/{quote(name)}")
            assert answer.text == "here"
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "sandbox" in answer.headers["content-security-policy"]
            assert name.strip() not in str(answer.headers) or name == "\\" or not name.strip()

    body()


def test_a_shortage_is_not_taken_for_a_missing_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system cannot open one file more, the answer is 503: try again; an unreadable file is not there."""

    def refuse(tree: Tree, path: str) -> Any:
        raise OSError(errno.EMFILE if path == "shortage" else errno.EACCES, "no")

    @on_a_loop
    async def body() -> None:
        async with served(directory) as client:
            monkeypatch.setattr(Tree, "open", refuse)
            short = await client.get("/files/shortage")
            assert short.status_code == 503
            assert short.headers["retry-after"]
            assert (await client.get("/files/a/b.csv")).status_code == 404

    body()
