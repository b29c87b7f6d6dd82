"""The mirror against a server that means harm: none holds it for ever, fills memory or log, or speaks in its name."""

import asyncio
import contextlib
import json
import re
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.clients import GaveUp, Retry, long_polling
from lab.clients.answers import BadAnswer
from lab.mirror.bundle import TAR, members
from lab.mirror.report import NAMED
from lab.virtual import Net
from tests.support_mirror import a_mirror, files, following
from tests.support_mirror import sha256 as sha
from tests.test_mirror import Reply, faults, hostile, listing, reply, until_virtual, virtual

OFTEN = Retry(0.05, 0.05, give_up_after=3)


def drip(begin: bytes, again: bytes) -> Reply:
    """An answer that begins like that, and then goes on by a few bytes at a time, for ever."""

    async def write_it(writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while not writer.is_closing():
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(0.05)

    return write_it


OK = b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n"
ENDLESS = {
    "head": drip(OK + b"X: ", b"x"),
    "interim answers": drip(b"", b"HTTP/1.1 103 X\r\n\r\n"),
    "reason": drip(b"HTTP/1.1 503 X\r\nContent-Length: 1000\r\n\r\n", b"x"),
}
ENDLESS_BODY = {
    "chunk's head": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "trailer": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ", b"x"),
}


@pytest.mark.parametrize(
    ("path", "way"),
    [(path, way) for path in ("/files", "/files/a", "/events", "/updates") for way in ENDLESS]
    + [(path, way) for path in ("/files", "/files/a", "/updates") for way in ENDLESS_BODY],
)
@virtual
async def test_an_answer_that_never_ends_is_broken_off(net: Net, tmp_path: Path, path: str, way: str) -> None:
    """What comes before the head, in it, between the pieces of a body or after them, has the time of a silence."""
    replies = {"/files": reply(200, listing(("a", b"x"))), "/files/a": reply(200, b"x")}
    replies["/events"] = drip(OK + b"\r\n", b":\n")
    async with hostile(replies) as (url, heads):
        for query in ("", "?after=e-0&wait=0.1"):
            replies[path + query] = (ENDLESS | ENDLESS_BODY)[way]
        begun = asyncio.create_task(
            _polling(url) if path == "/updates" else following(a_mirror(tmp_path, url, timeout=0.3, heartbeat=0.1), [])
        )
        await until_virtual(lambda: sum(re.split(b"[ ?]", head)[1] == path.encode() for head in heads) >= 4)
        begun.cancel()
        await asyncio.wait([begun])
        assert begun.cancelled()


async def _polling(url: str) -> None:
    async with contextlib.aclosing(long_polling(url, "e-0", wait=0.1, timeout=0.3)) as news:
        async for _ in news:
            pass


@virtual
async def test_a_sync_ends_in_time_whatever_the_answer(net: Net, tmp_path: Path) -> None:
    """A file whose answer never begins is given up like one that never comes."""
    async with hostile({"/files": reply(200, listing(("a", b"x"))), "/files/a": ENDLESS["interim answers"]}) as (
        url,
        _,
    ):
        with pytest.raises(GaveUp, match=r"'a' cannot be had, for 3 s \(ReadTimeout: no answer in"):
            await a_mirror(tmp_path, url, timeout=0.3, retry=OFTEN).sync()


def extended(records: int) -> bytes:
    """An archive that is one header of so many records."""
    member, data = tarfile.TarInfo("x"), b"5 a=\n" * records
    member.type, member.size = tarfile.XHDTYPE, len(data)
    return member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def test_an_archive_takes_as_long_as_it_is() -> None:
    """Eight times as many records in a header take some eight times as long to read, and no sixty-four."""

    def seconds(archive: bytes) -> float:
        begin = time.process_time()
        assert list(members(archive)) == []
        return time.process_time() - begin

    few = min(seconds(extended(20_000)) for _ in range(3))
    assert min(seconds(extended(160_000)) for _ in range(2)) < 28 * few


@pytest.mark.parametrize(
    "body",
    [
        lambda: b"[" + b"[]," * 500_000 + b"[]]",
        lambda: b'{"cursor":"e-0","files":[' + b"[]," * 500_000 + b"[]]}",
        lambda: b'{"cursor":"e-0","files":[],"more":[' + b"{}," * 500_000 + b"{}]}",
        lambda: b'{"cursor":"e-0","files":[{"path":[' + b"{}," * 500_000 + b"{}]}]}",
    ],
    ids=["list", "files", "more", "path"],
)
@virtual
async def test_a_listing_takes_the_memory_of_its_files(net: Net, tmp_path: Path, body: Callable[[], bytes]) -> None:
    """JSON whose objects would take twenty times its bytes is refused before they are made."""
    said = body()
    async with hostile({"/files": reply(200, said)}) as (url, _):
        tracemalloc.start()
        try:
            with pytest.raises(BadAnswer):
                await a_mirror(tmp_path, url).sync()
            assert tracemalloc.get_traced_memory()[1] < 20 * 2**20 + 4 * len(said)
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("more", ["", ","])
@virtual
async def test_a_listing_may_say_more_in_any_order(net: Net, tmp_path: Path, more: str) -> None:
    """What a listing says besides its files stands before or after them; a comma too many is no listing."""
    file = json.dumps({"path": '"files":[],', "size": 1, "sha256": sha(b"x")})
    said = f'{{"new": [1], "files" : [\n {file} , {file} {more} ] , "cursor": "e-0"}}'
    async with hostile({"/files": reply(200, said.encode()), "/files/%22files%22%3A%5B%5D%2C": reply(200, b"x")}) as (
        url,
        _,
    ):
        with pytest.raises(BadAnswer, match="not JSON") if more else contextlib.nullcontext():
            await a_mirror(tmp_path, url).sync()
    assert files(tmp_path) == ({} if more else {'"files":[],': sha(b"x")})


@virtual
async def test_what_a_server_says_of_itself_is_no_line_of_its_own(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Line ends and what a terminal would obey are written as escapes."""
    detail = json.dumps({"detail": "\x1b[2J\nWARNING all is well"}).encode()
    async with hostile({"/files": reply(503, detail)}) as (url, _):
        with pytest.raises(GaveUp):
            await a_mirror(tmp_path, url, retry=OFTEN).sync()
    said = r"(Unavailable: the server answered 503: \x1b[2J\nWARNING all is well): trying again"
    assert faults(caplog) == [f"the link to {url} failed {said}"]


@virtual
async def test_a_thousand_faults_are_a_hundred_lines(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of what is refused so much is named as a person may read; the rest is counted, and other faults are told."""
    many = listing(*((f"../{number}", b"x") for number in range(10 * NAMED)), ("a", b"x"))
    async with hostile({"/files": reply(200, many), "/files/a": reply(200, b"y")}) as (url, _):
        mirror = a_mirror(tmp_path, url, retry=OFTEN)
        with pytest.raises(GaveUp):
            await mirror.sync()
    lines = faults(caplog)
    assert mirror.counters.refused == 10 * NAMED
    assert [line.startswith("refused '../") for line in lines] == [True] * NAMED + [False] * 2
    assert "nothing is said" in lines[-2]
    assert "'a' cannot be fetched" in lines[-1]


@virtual
async def test_a_bundle_that_is_none_is_one_line(net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What has stopped many files at once is said once, and each is fetched by itself."""
    replies = {"/files": reply(200, listing(*((str(number), b"x") for number in range(30))))}
    replies |= {f"/files/{number}": reply(200, b"x") for number in range(30)}
    replies["/bundle"] = reply(200, b"x", f"Content-Type: {TAR}", "Content-Encoding: gzip")
    async with hostile(replies) as (url, _):
        await a_mirror(tmp_path, url).sync()
    assert [line.endswith("the answer is encoded ('gzip')): trying again") for line in faults(caplog)] == [True]
    assert len(files(tmp_path)) == 30
