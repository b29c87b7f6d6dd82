"""The capstone service: the listing and its cursor, the files and their bytes, what it refuses, and its page."""

import asyncio
import base64
import contextlib
import errno
import hashlib
import itertools
import logging
import os
import random
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import expect

from servers import downloads
from servers.arguments import checked_token
from servers.background import serve
from servers.downloads import CHUNK, requested_range
from servers.feed import Feed
from servers.file_updates import FEW, create_app
from servers.tree import Tree
from tests.support import Raw, events, http, on_a_loop, until
from tests.support_browser import Tab, browser, tab

__all__ = ["browser", "tab"]  # fixtures

TOKEN = "a-token-of-many-characters"
LARGE = 3 * CHUNK + 17


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with two files."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve() / "watched"
        (path / "a").mkdir(parents=True)
        (path / "a" / "b.csv").write_text("hello")
        (path / "empty").touch()
        yield path


@contextlib.asynccontextmanager
async def served(directory: Path, feed: Feed | None = None, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that has taken its first look at a directory."""
    with serve(create_app(feed or Feed(epoch="e"), Tree(directory), **options)) as server:
        async with http(server) as client:
            yield client


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def rescan(feed: Feed, tree: Tree) -> None:
    """What watch() does with a hint."""
    for edit in tree.scan():
        feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)


# --- the listing ---


@on_a_loop
async def test_the_listing_is_what_stands_at_its_cursor(directory: Path) -> None:
    """It has every file in the order of paths, changes with the published updates and not before, and has an ETag."""
    feed, tree = Feed(epoch="e"), Tree(directory)
    with serve(create_app(feed, tree)) as server:
        async with http(server) as client:
            first = await client.get("/files")
            assert first.json() == {
                "cursor": "e-0",
                "files": [
                    {"path": "a/b.csv", "size": 5, "sha256": sha256(b"hello")},
                    {"path": "empty", "size": 0, "sha256": sha256(b"")},
                ],
            }
            assert first.headers["etag"] == '"e-0"'
            assert (await client.get("/files", headers={"If-None-Match": '"e-0"'})).status_code == 304
            await asyncio.to_thread((directory / "new").write_text, "x")
            await asyncio.to_thread((directory / "empty").unlink)
            tree.scan()  # what a scan has found is not in the listing before it is published
            assert (await client.get("/files")).json() == first.json()
            feed.publish("empty", "deleted")
            feed.publish("new", "added", size=1, sha256="5")
            second = await client.get("/files", headers={"If-None-Match": '"e-0"'})
            assert second.json()["cursor"] == "e-2"
            assert [file["path"] for file in second.json()["files"]] == ["a/b.csv", "new"]


@pytest.mark.parametrize("files", [3, FEW + 1])
def test_a_listing_and_the_events_after_its_cursor_lead_to_the_same_files(files: int) -> None:
    """At any moment of a busy log, also a short one, listing plus later events equals what stands there at the end."""

    @on_a_loop
    async def body() -> None:
        feed, rng = Feed(epoch="e"), random.Random(1)
        feed.adopt({f"{number}": (number, "0") for number in range(files)})
        stop = threading.Event()

        def publish() -> None:
            while not stop.wait(0.0005):
                path = f"{rng.randrange(files)}"
                if rng.random() < 0.3:
                    feed.publish(path, "deleted")
                else:
                    feed.publish(path, size=rng.randrange(9), sha256="1")

        thread = threading.Thread(target=publish)
        with serve(create_app(feed)) as server:
            async with http(server) as client:
                thread.start()
                try:
                    answers = [await client.get("/files") for _ in range(10)]
                    answers += await asyncio.gather(*(client.get("/files") for _ in range(10)))
                finally:
                    stop.set()
                    thread.join()
                final = (await client.get("/files")).json()
                expected = {file["path"]: file["size"] for file in final["files"]}
                for answer in answers:
                    assert answer.headers["etag"] == f'"{answer.json()["cursor"]}"'
                    state = {file["path"]: file["size"] for file in answer.json()["files"]}
                    for update in feed.read(feed.position(answer.json()["cursor"])).updates:
                        if update.change == "deleted":
                            state.pop(update.path, None)
                        else:
                            state[update.path] = update.size
                    assert state == expected

    body()


@on_a_loop
async def test_a_listing_is_not_older_than_its_question() -> None:
    """Who asks after an update was published finds it, also while an older listing is still being encoded."""
    feed = Feed(epoch="e")
    feed.adopt({f"{number}": (number, "0") for number in range(3 * FEW)})
    app = create_app(feed)
    with serve(app) as server:
        async with http(server) as client:

            async def ask() -> None:
                for _ in range(10):
                    head = feed.publish("a").seq
                    assert int((await client.get("/files")).json()["cursor"].removeprefix("e-")) >= head

            await asyncio.gather(*(ask() for _ in range(4)))


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


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("change", ["overwrite", "truncate"])
def test_a_large_file_that_changes_while_it_is_served_never_looks_complete(
    directory: Path, change: str, partial: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection breaks before the last byte, a log line names the file, the next request gets the new one."""
    file = directory / "f\n"
    size = 64 * CHUNK  # more than the kernel's buffers hold
    file.write_bytes(bytes(size))

    @on_a_loop
    async def body() -> None:
        with serve(create_app(Feed(), Tree(directory)), quiet=False) as server:
            async with http(server) as client:
                headers = {"Range": f"bytes=1-{size - 1}"} if partial else {}

                def meddle() -> None:
                    with file.open("r+b") as open_file:
                        open_file.truncate(7) if change == "truncate" else open_file.write(b"other")

                received = await broken_off(client, "/files/f%0A", meddle, headers)
                assert 0 < received < size - partial
                again = await client.get("/files/f%0A")
                assert again.content == await asyncio.to_thread(file.read_bytes)
                assert server.errors == []

    with caplog.at_level(logging.WARNING, "servers"):
        body()
    assert caplog.messages == ["broke off 'f\\n': the file changed while it was read"]


def test_a_large_file_that_grows_while_it_is_served_is_served_as_it_was(directory: Path) -> None:
    """What is appended meanwhile breaks nothing off: the answer is the bytes that its ETag is of."""
    file, before = directory / "f", bytes(64 * CHUNK)
    file.write_bytes(before)

    @on_a_loop
    async def body() -> None:
        async with served(directory) as client, client.stream("GET", "/files/f") as answer:
            content = b""
            async for data in answer.aiter_raw():
                if not content:
                    with file.open("ab") as open_file:
                        open_file.write(b"more")
                content += data
            assert content == before
            assert answer.headers["etag"] == f'"{sha256(before)}"'

    body()


def test_a_fresh_file_is_read_once_more_before_its_last_byte(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change within the clock's tick, which leaves the stat as it was, is found by the hash."""
    file = directory / "f"
    file.write_bytes(bytes(64 * CHUNK))
    monkeypatch.setattr(downloads, "identity", lambda status: (1, 2, status.st_size))
    monkeypatch.setattr("servers.tree.identity", lambda status: (1, 2, status.st_size))

    @on_a_loop
    async def body() -> None:
        async with served(directory) as client:

            def meddle() -> None:
                with file.open("r+b") as open_file:
                    open_file.write(b"other")

            assert await broken_off(client, "/files/f", meddle, {}) < file.stat().st_size

    body()


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


@on_a_loop
async def test_listing_events_and_files_agree_on_what_is_left_out(directory: Path) -> None:
    """What is ignored or too large is in none of the three; a file that grows too large is deleted."""
    files = {".git/config": 1, "x.tmp": 1, "deep/down/y.tmp": 1, "build/z.o": 1, "src/z.o": 1, "big": 11, "just": 10}
    for name, size in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(bytes(size))
    feed, tree = Feed(epoch="e"), Tree(directory, limit=10, ignore=[".git", "*.tmp", "build/*.o"])
    assert set(tree.skipped) == {"'big'"}
    assert not any(".git" in name for name in tree.folders)
    with serve(create_app(feed, tree)) as server:
        async with http(server) as client:
            listed = [file["path"] for file in (await client.get("/files")).json()["files"]]
            assert listed == ["a/b.csv", "empty", "just", "src/z.o"]
            for name in files:
                assert (await client.get(f"/files/{name}")).status_code == (200 if name in listed else 404), name
            (directory / "just").write_bytes(bytes(11))
            assert (await client.get("/files/just")).status_code == 404
            rescan(feed, tree)
            assert [(u.path, u.change) for u in feed.read(0).updates] == [("just", "deleted")]


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


@on_a_loop
async def test_a_schedule_has_a_listing_and_no_files() -> None:
    """Without a directory the listing follows the schedule, and every file is 404."""
    feed = Feed(epoch="e")
    with serve(create_app(feed)) as server:
        async with http(server) as client:
            feed.publish("a", "added", size=3, sha256="0")
            assert (await client.get("/files")).json()["files"] == [{"path": "a", "size": 3, "sha256": "0"}]
            assert (await client.get("/files/a")).status_code == 404


# --- who may come ---


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@on_a_loop
async def test_with_a_token_only_health_is_free(directory: Path) -> None:
    """Everything else wants the token, as Bearer or as a Basic password; in a URL it does not count."""
    async with served(directory, token=TOKEN) as client:
        for path in (
            "/",
            "/files",
            "/files/a/b.csv",
            "/events",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/pages/live.js",
        ):
            for authorization in (
                None,
                "",
                "Bearer",
                f"Bearer {TOKEN}x",
                f"Bearer {TOKEN[:-1]}",
                TOKEN,
                f"Digest {TOKEN}",
                "Basic %%%",
                "Bearer \xff",
                basic("wrong"),
                basic(""),
            ):
                headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
                answer = await client.get(path, headers=headers)
                assert answer.status_code == 401, (path, authorization)
                assert [c.split()[0] for c in answer.headers.get_list("www-authenticate")] == ["Bearer", "Basic"]
                assert "hello" not in answer.text
        assert (await client.get("/healthz")).status_code == 200
        for authorization in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)):
            answer = await client.get("/files/a/b.csv", headers={"Authorization": authorization})
            assert answer.text == "hello"
        assert (await client.get("/files", params={"access_token": TOKEN, "token": TOKEN})).status_code == 401


@pytest.mark.parametrize("text", ["", "short", "fifteen-letters", "a token with a space", "ü" * 20, "a" * 20 + "\nb"])
def test_what_is_no_token_is_refused(text: str) -> None:
    """A token is long enough, and printable ASCII without a space; space around it is not part of it."""
    with pytest.raises(ValueError, match="a token is at least 16 printable ASCII characters"):
        checked_token(text)
    assert checked_token(f" {TOKEN}\n") == TOKEN


@on_a_loop
async def test_only_listed_origins_may_read(directory: Path) -> None:
    """CORS names the listed origin and no other; its pages may send the token; a preflight needs none."""
    ours, theirs = "https://hub.example", "https://elsewhere.example"
    async with served(directory, allow_origins=[ours], token=TOKEN) as client:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,range"}
        allowed = await client.options("/files/a/b.csv", headers={"Origin": ours} | asked)
        assert allowed.status_code == 200
        assert (await client.options("/files/a/b.csv", headers={"Origin": theirs} | asked)).status_code == 400
        answer = await client.get("/files/a/b.csv", headers={"Origin": ours} | bearer)
        assert answer.headers["access-control-allow-origin"] == ours
        assert "etag" in answer.headers["access-control-expose-headers"].lower()
        assert answer.headers["access-control-allow-credentials"] == "true"
        other = await client.get("/files/a/b.csv", headers={"Origin": theirs} | bearer)
        assert "access-control-allow-origin" not in other.headers
        refused = await client.get("/files", headers={"Origin": ours})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ours)
    async with served(directory) as client:
        answer = await client.get("/files", headers={"Origin": ours})
        assert "access-control-allow-origin" not in answer.headers


@on_a_loop
async def test_beyond_the_limit_is_503_until_somebody_leaves(directory: Path) -> None:
    """Open streams count; health and metrics are always answered; whoever leaves makes room at once."""
    app = create_app(Feed(epoch="e"), Tree(directory), max_connections=2)
    with serve(app) as server:
        async with http(server) as client, contextlib.AsyncExitStack() as streams:
            held = [await streams.enter_async_context(events(server)) for _ in range(2)]
            assert [await stream.block() for stream in held] == 2 * ["retry: 2000"]
            for path in ("/files", "/files/a/b.csv", "/events", "/"):
                answer = await client.get(path)
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) > 0
            assert (await client.get("/healthz")).status_code == 200
            assert 'updates_held{model="file updates"} 2.0' in (await client.get("/metrics")).text
            await streams.aclose()
            await until(lambda: app.traffic.held == 0)
            assert (await client.get("/files/a/b.csv")).text == "hello"
            assert (await client.get("/none")).status_code == 404
            assert (await client.get("/files/a/b.csv")).text == "hello"


# --- the page ---


def test_the_page_lists_watches_and_links(tab: Tab, directory: Path) -> None:
    """What stands there is listed, what changes is shown, a link leads to the bytes, and a name is only a name."""
    markup = "<img src=x onerror=alert(1)>"
    (directory / markup).write_text("here")
    (directory / "two\nlines").write_text("lines")
    feed, tree = Feed(epoch="e"), Tree(directory)
    server = tab.serve(create_app(feed, tree, retry=50))
    tab.page.goto(server.url)
    tab.shows("known", 4)
    expect(tab.page.locator("#files a")).to_have_text([markup, "a/b.csv", "empty", r"two\nlines"])
    assert tab.page.locator("#files img").count() == 0
    expect(tab.page.locator("#state")).to_have_text("readyState 1 (open)")
    (directory / "new").write_text("x")
    (directory / "empty").unlink()
    rescan(feed, tree)
    tab.shows("updates", 2)
    tab.shows("known", 4)
    assert tab.seqs() == [1, 2]
    links = tab.page.locator("#files a")
    expect(links).to_have_text([markup, "a/b.csv", "new", r"two\nlines"])
    for number, content in enumerate(["here", "hello", "x", "lines"]):
        with tab.page.expect_download() as download:
            links.nth(number).click()
        assert Path(download.value.path()).read_text() == content


def test_the_page_lists_again_after_a_reset(tab: Tab) -> None:
    """When the log is another after a restart, the page shows that one's files, and follows it."""
    tab.allow(r"net::ERR_CONNECTION_REFUSED")
    old, new = Feed(epoch="f001"), Feed(epoch="f002")
    old.adopt({"old": (1, "0")})
    new.adopt({"new": (1, "0"), "newer": (1, "0")})
    server = tab.serve(create_app(old, retry=50))
    tab.page.goto(server.url)
    tab.shows("known", 1)
    expect(tab.page.locator("#state")).to_have_text("readyState 1 (open)")
    server.stop()
    tab.serve(create_app(new, retry=50), port=server.port)
    tab.shows("known", 2)
    tab.shows("resets", 1)
    new.publish("third", "added", size=1, sha256="0")
    tab.shows("known", 3)
    expect(tab.page.locator("#files a")).to_have_text(["new", "newer", "third"])


def test_a_browser_asks_for_the_token_once(tab: Tab, directory: Path) -> None:
    """With the token as a password, page, listing, stream and downloads work: the browser sends it by itself."""
    feed = Feed(epoch="e")
    server = tab.serve(create_app(feed, Tree(directory), token=TOKEN))
    context = tab.page.context.browser
    assert context is not None
    with contextlib.closing(context.new_context(http_credentials={"username": "me", "password": TOKEN})) as admitted:
        page = admitted.new_page()
        page.goto(server.url)
        expect(page.locator("#known")).to_have_text("2")
        expect(page.locator("#state")).to_have_text("readyState 1 (open)")
        feed.publish("new", size=1, sha256="0")
        expect(page.locator("#updates")).to_have_text("1")
        with page.expect_download() as download:
            page.get_by_role("link", name="a/b.csv").click()
        assert Path(download.value.path()).read_text() == "hello"
