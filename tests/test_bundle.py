"""Many small files in one answer: what is in the archive, what is left out, and who reads it."""

import asyncio
import io
import json
import os
import random
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import bundle
from servers.background import serve
from servers.bundle import MOST, SMALL, head, record
from servers.feed import Feed
from servers.file_updates import create_app
from servers.hashing import File
from servers.tree import Tree
from tests.support import Raw, http, on_a_loop, tasks_of, unsent, until
from tests.support_files import directory, served, sha256

__all__ = ["directory"]  # a fixture

TOKEN = "a-token-of-many-characters"
NAMES = (
    "a/b.csv",
    "empty",
    "run.sh",
    "ü/日本",
    "two\nlines",
    "x" * 100,
    "y" * 101,
    "deep/" * 30 + "z" * 200,
    "-rf",
    "a b",
)


def members(archive: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """Each member of an archive that is whole, by its path, and its bytes, which must be those of its hash."""
    assert archive.endswith(bytes(1024))
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            assert member.pax_headers["PUSHPULL.sha256"] == sha256(content)
            found[member.name] = member, content
    return found


async def bundled(client: httpx.AsyncClient, *paths: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    answer = await client.post("/bundle", json={"paths": paths})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-tar")
    return members(answer.content)


def fill(directory: Path, names: tuple[str, ...] = NAMES) -> dict[str, bytes]:
    """Write a file under each name, with bytes of its own."""
    rng, contents = random.Random(1), {}
    for number, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        contents[name] = rng.randbytes(number * 200)
        path.write_bytes(contents[name])
        path.chmod(0o4751 if name == "run.sh" else 0o640)
        os.utime(path, (1, 1_700_000_000.25 + number))
    return contents


@on_a_loop
async def test_many_files_come_in_one_answer(directory: Path) -> None:
    """Each asked for is there once, in the order asked, with its bytes, hash, time and executable bit, and no owner."""
    contents = fill(directory)
    async with served(directory) as client:
        wanted = sorted(NAMES, key=lambda name: sha256(name.encode()))
        found = await bundled(client, *wanted, wanted[0])
        assert list(found) == wanted
        for number, name in enumerate(NAMES):
            member, content = found[name]
            assert (content, member.mtime, member.isreg()) == (contents[name], 1_700_000_000.25 + number, True)
            assert member.mode == (0o755 if name == "run.sh" else 0o644)
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
        assert await bundled(client) == {}


@on_a_loop
async def test_what_is_not_there_is_left_out(directory: Path) -> None:
    """What is gone, no regular file inside the tree, ignored, or too large is absent; the others come."""
    (directory.parent / "secret").write_text("secret")
    (directory / "link").symlink_to("../secret")
    (directory / "up").symlink_to("..")
    (directory / "gone").write_text("x")
    (directory / "x.tmp").write_text("x")
    (directory / "just").write_bytes(bytes(SMALL))
    (directory / "large").write_bytes(bytes(SMALL + 1))
    tree = Tree(directory, ignore=["*.tmp"])
    with serve(create_app(Feed(epoch="e"), tree)) as server:
        async with http(server) as client:
            (directory / "gone").unlink()
            names = [
                "link",
                "up/secret",
                "../secret",
                "/etc/passwd",
                "a",
                "a/",
                "",
                ".",
                "x.tmp",
                "gone",
                "large",
                "\0",
            ]
            assert list(await bundled(client, *names, "just", "a/b.csv", "none")) == ["just", "a/b.csv"]
        assert server.errors == []


def test_tar_unpacks_it(directory: Path, tmp_path: Path) -> None:
    """The archive is what the system's own tool reads: bytes, times and the executable bit are there."""
    contents = fill(directory)
    (tmp_path / "copy").mkdir()
    with serve(create_app(Feed(epoch="e"), Tree(directory))) as server:
        archive = httpx.post(f"{server.url}/bundle", json={"paths": NAMES}, timeout=20, trust_env=False).content
    tar = ["tar", "-xp", "--warning=no-unknown-keyword", "-C", f"{tmp_path}/copy"]
    unpacked = subprocess.run(tar, check=True, timeout=30, capture_output=True, input=archive)
    assert unpacked.stderr == b""
    for number, (name, content) in enumerate(contents.items()):
        path = tmp_path / "copy" / name
        assert path.read_bytes() == content
        assert path.stat().st_mtime == 1_700_000_000.25 + number
        assert path.stat().st_mode & 0o777 == (0o755 if name == "run.sh" else 0o644)


@given(
    path=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300),
    mtime=st.integers(-(10**19), 10**21),
    size=st.integers(0, 8**11 - 1),
    executable=st.booleans(),
)
@settings(deadline=None)
def test_any_name_and_time_can_be_told(path: str, mtime: int, size: int, executable: bool) -> None:
    """What a header says is what the standard library reads in it."""
    known = File(size, "0" * 64, (0, 0, size, mtime, 0), settled=True, executable=executable)
    header = head(path, known)
    assert len(header) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(header)) as tar:
        info = tar.next()
    assert info is not None
    assert (info.name, info.size) == (path.rstrip("/"), size)
    assert info.mtime == pytest.approx(known.mtime, abs=1e-9)
    assert info.mode == (0o755 if executable else 0o644)


@given(st.integers(0, 1100))
@settings(deadline=None)
def test_a_record_begins_with_its_length(size: int) -> None:
    """Also where its length has one digit more because of its own digits."""
    told = record("a", "x" * size)
    assert told.startswith(f"{len(told)} a=".encode())


@on_a_loop
async def test_what_is_asked_is_bounded(directory: Path) -> None:
    """More paths, other bodies and a larger body are refused in one sentence; the token counts as everywhere."""
    async with served(directory) as client:
        bodies: list[Any] = [{"paths": ["x"] * (MOST + 1)}, {"paths": "x"}, {"paths": [1]}, {}, [], None]
        for body in bodies:
            answer = await client.post("/bundle", json=body)
            assert (answer.status_code, list(answer.json())) == (400, ["detail"]), body
        plain = {"Content-Type": "text/plain"}  # what a foreign page could send
        for content, headers, status in [
            (b'{"paths": []}', plain, 400),
            (b"{", {"Content-Type": "application/json"}, 400),
            (b"x" * 70_000, {"Content-Type": "application/json"}, 413),
        ]:
            answer = await client.post("/bundle", content=content, headers=headers)
            assert answer.status_code == status
        form = await client.post("/bundle", data={"paths": "x"})
        assert form.json() == {"detail": 'body: send {"paths": [...]} as application/json'}
        answer = await client.get("/bundle")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        described = (await client.get("/openapi.json")).json()["paths"]["/bundle"]["post"]["responses"]
        assert list(described["200"]["content"]) == ["application/x-tar"]
    async with served(directory, token=TOKEN) as client:
        assert (await client.post("/bundle", json={"paths": []})).status_code == 401
    with serve(create_app(Feed())) as server:
        async with http(server) as client:
            assert (await client.post("/bundle", json={"paths": []})).status_code == 404


@on_a_loop
async def test_an_answer_is_bounded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an answer is full, no further file is in it, and it is a whole archive all the same."""
    names = [f"{number}" for number in range(20)]
    for name in names:
        (directory / name).write_bytes(bytes(SMALL))
    monkeypatch.setattr(bundle, "FULL", 5 * SMALL)
    async with served(directory) as client:
        found = list(await bundled(client, *names))
        assert found == names[: len(found)]
        assert len(found) == 5


def test_a_file_that_keeps_changing_is_whole_or_absent(directory: Path) -> None:
    """While a file is rewritten in place all the time, its bytes in a bundle are those of its hash, or it is absent."""
    file, stop = directory / "f", threading.Event()
    file.write_bytes(bytes(SMALL))

    def rewrite() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with file.open("r+b") as open_file:
                open_file.write(number.to_bytes(4) * (SMALL // 4))

    thread = threading.Thread(target=rewrite)

    @on_a_loop
    async def body() -> None:
        async with served(directory) as client:
            for _ in range(20):
                assert list(await bundled(client, "f", "a/b.csv"))[-1] == "a/b.csv"

    thread.start()
    try:
        body()
    finally:
        stop.set()
        thread.join()


@on_a_loop
async def test_a_client_that_does_not_read_or_leaves_costs_little(directory: Path) -> None:
    """What waits for a client is a batch or two, and whoever leaves leaves no task behind."""
    names = [f"{number}" for number in range(60)]
    for name in names:
        (directory / name).write_bytes(random.Random(1).randbytes(SMALL))
    with serve(create_app(Feed(epoch="e"), Tree(directory))) as server:
        body = json.dumps({"paths": names}).encode()
        raw = Raw(server)
        raw.send(b"POST /bundle HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.send(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        await raw.read_until(b"\r\n\r\n")
        await until(lambda: unsent(server) > 0)
        for _ in range(20):
            assert unsent(server) < 2 * (SMALL + bundle.BATCH)
            await asyncio.sleep(0.01)
        raw.reset()
        await until(lambda: not any("run_asgi" in task for task in tasks_of(server)))
        assert server.errors == []


@on_a_loop
async def test_a_client_of_http_1_0_gets_it_without_chunks(directory: Path) -> None:
    """The archive ends with the connection."""
    with serve(create_app(Feed(epoch="e"), Tree(directory))) as server, Raw(server) as raw:
        raw.send(b"POST /bundle HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n")
        raw.send(b'{"paths": ["a/b.csv"]}')
        header, _, body = (await raw.read_all()).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in header.lower()
        assert members(body)["a/b.csv"][1] == b"hello"
