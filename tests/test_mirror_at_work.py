"""The mirror at work: bundles, renames, files that grow, links that break, and what must not be lost or touched."""

import asyncio
import contextlib
import ctypes
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.clients import GaveUp, Retry
from lab.mirror import Applied, CopyError, Mirror
from lab.mirror.__main__ import main
from lab.mirror.bundle import members, unpack
from lab.mirror.copy import Copy
from lab.mirror.fetch import _listing as parsed_listing
from lab.mirror.grow import Begun
from lab.mirror.names import Version
from lab.mirror.part import is_alone
from lab.mirror.protect import TooManyLosses
from lab.virtual import Net
from servers import file_updates
from servers.background import serve
from servers.feed import Feed
from servers.index import Index
from servers.tree import Tree
from tests.support import on_a_loop
from tests.support_mirror import Stage, a_mirror, contents, files, following, remove, served, write
from tests.support_mirror import sha256 as sha
from tests.test_mirror import faults, followed, hostile, listing, live, reply, same, three_files, until_virtual, virtual

MANY = 300  # files; more than may be lost without a word


def many(directory: Path, below: str = "old") -> None:
    for number in range(MANY):
        write(directory, f"{below}/{number % 10}/{number}", f"{number}")


def look(stage: Stage) -> None:
    """Publish what has changed: what has come before what has gone."""
    for edit in sorted(stage.tree.scan(), key=lambda edit: edit.change == "deleted"):
        stage.feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)


def append(file: Path, data: bytes) -> bytes:
    """Add to a file; all of it."""
    with file.open("ab") as opened:
        opened.write(data)
    return file.read_bytes()


# Bundles


@virtual
async def test_a_first_copy_takes_a_request_for_many_files(net: Net, tmp_path: Path) -> None:
    """Small files come in one bundle, with time and executable bit; a large one by itself."""
    many(tmp_path / "dir")
    os.utime(write(tmp_path / "dir", "old.txt", "old"), (1e9, 1e9))
    write(tmp_path / "dir", "run", "#!/bin/sh").chmod(0o755)
    write(tmp_path / "dir", "large", bytes(1_000_000))
    async with served(tmp_path / "dir") as stage:
        asked: list[str] = []

        async def before(path: str) -> None:
            asked.append(path)

        stage.meddler.before = before
        await a_mirror(tmp_path / "copy").sync()
        assert sorted(asked) == ["/bundle", "/files", "/files/large"]
    assert contents(tmp_path / "copy") == contents(tmp_path / "dir")
    for path in ("old.txt", "run", "old/3/3"):
        ours, theirs = (tmp_path / "copy" / path).stat(), (tmp_path / "dir" / path).stat()
        assert ours.st_mode & 0o111 == theirs.st_mode & 0o111
        assert ours.st_mtime == pytest.approx(theirs.st_mtime, abs=1e-5)


@virtual
async def test_a_touched_file_takes_its_time_and_nothing_is_fetched(net: Net, tmp_path: Path) -> None:
    """`touch` and `chmod +x` on the source arrive in the copy, as `make` and scripts need them, without a byte."""
    write(tmp_path / "dir", "run", "#!/bin/sh")
    async with served(tmp_path / "dir") as stage, followed(stage, mirror := a_mirror(tmp_path / "copy")) as applied:
        copy = tmp_path / "copy/run"
        os.utime(stage.directory / "run", (5, 5))
        stage.look()
        await until_virtual(lambda: copy.stat().st_mtime == 5)
        (stage.directory / "run").chmod(0o755)
        stage.look()
        await until_virtual(lambda: copy.stat().st_mode & 0o100 and len(applied) == 3)
        assert [change.how for change in applied] == ["fetched", "kept", "kept"]
        assert mirror.counters.fetched == 1


@pytest.mark.parametrize("time", [-(2.0**31), -1.5, 0.0, 0.25, 2.0**31, 2.0**33, 15_000_000_000.5])
@virtual
async def test_any_time_that_a_file_can_have_travels(net: Net, tmp_path: Path, time: float) -> None:
    """A clock that was wrong when a file was written is no reason to leave its time out: from 1901 to 2445."""
    (tmp_path / "dir").mkdir()
    os.utime(write(tmp_path / "dir", "a", "x"), (time, time))
    async with served(tmp_path / "dir"):
        await a_mirror(tmp_path / "copy").sync()
    assert (tmp_path / "copy/a").stat().st_mtime == (tmp_path / "dir/a").stat().st_mtime


def archive(*added: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in added:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mtime = kind, link, 5
    return found


def test_of_an_archive_only_what_was_asked_for_is_taken(tmp_path: Path) -> None:
    """Other names, links, devices, other sizes and hashes leave nothing behind; the good file arrives."""
    long = "d/" * 60 + "ü"
    body = archive(
        (member("../outside"), b"x"),
        (member("/etc/passwd"), b"x"),
        (member("link", tarfile.SYMTYPE, "/etc"), b""),
        (member("hard", tarfile.LNKTYPE, "/etc/passwd"), b""),
        (member("pipe", tarfile.FIFOTYPE), b""),
        (member("longer"), b"12"),
        (member("other"), b"y"),
        (member(long), b"x"),
        (member(long), b"again"),
    )
    asked = ["link", "hard", "pipe", "longer", "other", long]
    with Copy(tmp_path / "copy") as copy:
        wanted = dict.fromkeys(asked, Version(1, sha(b"x")))
        parts, full = unpack(body, wanted, copy.new_part, copy.drop)
        assert [path for path, _, _ in parts] == [long]
        assert full is None
        assert parts[0][2] == Version(1, sha(b"x"), 5.0, False)
    assert [name.name for name in (tmp_path / "copy").iterdir()] == [".mirror"]


@given(st.integers(0, 6000), st.binary(max_size=3), st.integers(0, 6000))
def test_an_archive_that_was_cut_or_spoilt_raises_nothing(length: int, noise: bytes, where: int) -> None:
    """Whatever comes instead of an archive, what is read from it are names and bytes, or nothing."""
    body = bytearray(archive((member("a"), b"x" * 700), (member("ü" * 90), b"y" * 600), (member("c"), b"")))
    body[where : where + len(noise)] = noise
    for found in members(bytes(body[:length])):
        assert len(found.content) <= len(body)


@virtual
async def test_what_a_bundle_lacks_is_fetched_by_itself(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is left out, or changed just before it was sent, is asked for alone, and the copy becomes right.

    That happens in any `git checkout`: nothing is said of it.
    """
    many(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:
        last = b"299" + bytes(509)

        def spoilt(body: bytes) -> bytes:
            assert last in body
            return body[: len(body) // 2].replace(b"17" + bytes(510), b"71" + bytes(510))

        stage.meddler.tamper["/bundle"] = [spoilt]
        await a_mirror(tmp_path / "copy").sync()
    assert files(tmp_path / "copy") == files(tmp_path / "dir")
    assert faults(caplog) == []


@virtual
async def test_what_is_touched_while_its_bundle_is_under_way_takes_its_time(net: Net, tmp_path: Path) -> None:
    """As `git gc` does to a pack: the bytes stay, and the time and the executable bit are those that were told last."""
    many(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:
        touched = stage.directory / "old/7/7"

        async def touch(path: str) -> None:
            if path == "/bundle" and touched.stat().st_mtime != 5:
                touched.chmod(0o755)
                os.utime(touched, (5, 5))
                stage.look()
                await asyncio.sleep(1)  # until the mirror knows

        stage.meddler.before = touch
        async with followed(stage, a_mirror(tmp_path / "copy")):
            copy = tmp_path / "copy/old/7/7"
            await until_virtual(lambda: copy.exists() and copy.stat().st_mtime == 5)
            assert copy.stat().st_mode & 0o100


# Renames


@pytest.mark.parametrize("history", [50, 10_000])
@virtual
async def test_a_directory_that_is_renamed_is_never_missing(net: Net, tmp_path: Path, history: int) -> None:
    """Nothing is fetched, and at no moment fewer names are there, however short the server's history."""
    many(tmp_path / "dir")

    def names() -> int:
        return sum(len(found) for top in ("old", "new") for _, _, found in os.walk(tmp_path / "copy" / top))

    async with served(tmp_path / "dir", history=history) as stage:
        async with followed(stage, mirror := a_mirror(tmp_path / "copy")):
            fetched = mirror.counters.fetched
            (stage.directory / "old").rename(stage.directory / "new")
            look(stage)
            while (tmp_path / "copy/old").exists():
                assert names() >= MANY
                await asyncio.sleep(0.004)
            await same(stage.directory, tmp_path / "copy")
            assert mirror.counters.fetched == fetched
            assert mirror.counters.copied == MANY
        async with followed(stage, again := a_mirror(tmp_path / "copy")):
            assert (again.counters.fetched, again.counters.copied) == (0, 0)


@pytest.mark.parametrize("number", [1, 20])
@virtual
async def test_a_deletion_waits_for_what_came_before_it(net: Net, tmp_path: Path, number: int) -> None:
    """While additions are being fetched, by themselves or together, nothing goes that was deleted after them."""
    names = [f"new/{each}" for each in range(number)]
    write(tmp_path / "dir", "first", "goes at once")
    write(tmp_path / "dir", "old", "goes last")
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy")):
        asked, answer = asyncio.Event(), asyncio.Event()

        async def before(path: str) -> None:
            if path.startswith(("/files/new", "/bundle")):
                asked.set()
                await answer.wait()

        stage.meddler.before = before
        remove(stage.directory, "first")
        stage.look()
        for name in names:
            write(stage.directory, name, f"content of {name}")
        remove(stage.directory, "old")
        stage.look()
        await asked.wait()
        await asyncio.sleep(1)
        assert set(files(tmp_path / "copy")) == {"old"}
        answer.set()
        await until_virtual(lambda: not (tmp_path / "copy/old").exists())
        assert set(files(tmp_path / "copy")) == set(names)


@virtual
async def test_a_file_that_is_renamed_while_it_is_fetched_is_never_missing(net: Net, tmp_path: Path) -> None:
    """What was asked for before it, of another path, is still tried before the old name goes."""
    write(tmp_path / "dir", "old", "first")
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy")):
        answers = {"/files/old": asyncio.Event(), "/files/new": asyncio.Event()}

        async def before(path: str) -> None:
            if path in answers:
                await answers[path].wait()

        stage.meddler.before = before
        write(stage.directory, "old", "second")
        stage.look()
        await asyncio.sleep(1)
        (stage.directory / "old").rename(stage.directory / "new")
        stage.look()
        await asyncio.sleep(1)
        answers["/files/old"].set()
        await asyncio.sleep(1)
        assert files(tmp_path / "copy") == {"old": sha(b"first")}
        answers["/files/new"].set()
        await until_virtual(lambda: files(tmp_path / "copy") == {"new": sha(b"second")})


def test_a_file_takes_the_place_of_directories_that_a_kill_left_empty(tmp_path: Path) -> None:
    """Whatever was not pruned holds nothing, and gives way; what others put there does not."""
    version = Version(5, sha(b"alpha"))
    for name in ("copy/a/b/c", "copy/a/d", "copy/x/y"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path, "copy/x/other", "another's")
    with Copy(tmp_path / "copy", adopt=True) as copy:
        copy.state.expect_all(dict.fromkeys(("a", "x"), version), "e-0")
        for path in ("a", "x"):
            with copy.part() as part, contextlib.nullcontext() if path == "a" else pytest.raises(IsADirectoryError):
                part.write(b"alpha")
                copy.place(part, path)
    assert files(tmp_path / "copy") == {"a": sha(b"alpha"), "x/other": sha(b"another's")}


# Files that grow, and links that break


@virtual
async def test_of_a_file_that_grows_only_the_tail_is_fetched(net: Net, tmp_path: Path) -> None:
    """What is appended is all that travels; a file that changed in place is never passed off as one that grew."""
    log = write(tmp_path / "dir", "log", random.Random(1).randbytes(500_000))
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy")) as applied:
        for _ in range(3):
            with log.open("ab") as file:
                file.write(b"a line\n")
            stage.look()
            await same(stage.directory, tmp_path / "copy")
            assert applied[-1].fetched == 7
        log.write_bytes(random.Random(2).randbytes(600_000))
        stage.look()
        await same(stage.directory, tmp_path / "copy")
        assert applied[-1].fetched == 600_000


@virtual
async def test_an_append_writes_no_more_than_what_was_appended(net: Net, tmp_path: Path) -> None:
    """What stood there before becomes the next state, in turn with the one before that; nothing of it is left over."""
    log = write(tmp_path / "dir", "log", random.Random(1).randbytes(500_000))
    inodes = list[int]()
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy")):
        for _ in range(6):
            await asyncio.to_thread(append, log, b"a line\n")
            stage.look()
            await same(stage.directory, tmp_path / "copy")
            inodes.append((tmp_path / "copy/log").stat().st_ino)
        assert len([*(tmp_path / "copy/.mirror").glob("part-*")]) == 1
        log.unlink()
        stage.look()
        await same(stage.directory, tmp_path / "copy")
        assert not [*(tmp_path / "copy/.mirror").glob("part-*")]
    with (tmp_path / "own").open("w") as own:
        assert (len({*inodes}) == 2) is is_alone(own.fileno())


@virtual
async def test_only_what_has_to_be_copied_again_waits(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append that costs what was appended is looked after at once; there is a pause only before a copy of all."""
    log, rests = write(tmp_path / "dir", "log", random.Random(1).randbytes(500_000)), list[str]()

    async def rest(_: Begun, path: str) -> None:
        rests.append(path)

    monkeypatch.setattr(Begun, "rest", rest)
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy")):
        with contextlib.ExitStack() as opened:
            for number in range(6):
                if number == 3:
                    opened.enter_context((tmp_path / "copy/log").open("rb"))
                await asyncio.to_thread(append, log, b"a line\n")
                stage.look()
                await same(stage.directory, tmp_path / "copy")
    with (tmp_path / "own").open("w") as own:
        assert rests == ["log"] * (2 if is_alone(own.fileno()) else 6)


@virtual
async def test_whoever_has_a_file_open_that_grows_keeps_the_state_that_was_there(net: Net, tmp_path: Path) -> None:
    """No state is written to that somebody can still read, be it by a descriptor or by another name."""
    log = write(tmp_path / "dir", "log", random.Random(1).randbytes(500_000))
    held = list[tuple[BinaryIO, bytes]]()
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy")):
        with contextlib.ExitStack() as opened:
            for number in range(8):
                content = await asyncio.to_thread(append, log, b"a line\n")
                stage.look()
                await same(stage.directory, tmp_path / "copy")
                if number % 3 == 1:
                    held.append((opened.enter_context((tmp_path / "copy/log").open("rb")), content))
                elif number % 3 == 2:
                    (tmp_path / f"link-{number}").hardlink_to(tmp_path / "copy/log")
            for reader, content in held:
                assert reader.read() == content
        for number in (2, 5):
            assert (tmp_path / f"link-{number}").read_bytes() == log.read_bytes()[: 500_000 + 7 * (number + 1)]


@virtual
async def test_a_download_goes_on_where_it_was_cut(net: Net, tmp_path: Path) -> None:
    """Over a link that breaks again and again a large file arrives, each byte about once."""
    write(tmp_path / "dir", "large", random.Random(1).randbytes(3_000_000))
    async with served(tmp_path / "dir"):
        net.link.rate = 1_000_000
        mirror, cuts = a_mirror(tmp_path / "copy"), 0

        async def cut() -> None:
            nonlocal cuts
            while True:
                await asyncio.sleep(0.7)
                net.link.cut()
                cuts += 1

        cutting = asyncio.create_task(cut())
        await mirror.sync()
        cutting.cancel()
        assert cuts >= 3
        assert mirror.counters.bytes < 4_000_000
    assert files(tmp_path / "copy") == files(tmp_path / "dir")


@virtual
async def test_what_comes_by_drops_is_broken_off(net: Net, tmp_path: Path) -> None:
    """A body of a byte now and then holds no worker for ever."""

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    replies = {"/files": reply(200, listing(("a", b"x" * 1000))), "/files/a": drip}
    async with hostile(replies) as (url, heads):
        mirror = a_mirror(tmp_path / "copy", url, timeout=0.3, retry=Retry(0.05, 0.05, give_up_after=3))
        with pytest.raises(GaveUp, match=r"ReadTimeout: .* bytes in"):
            await mirror.sync()
        assert sum(head.startswith(b"GET /files/a ") for head in heads) >= 2


class Longest(random.Random):
    """Chance that always takes the longest pause."""

    def uniform(self, a: float, b: float) -> float:
        """The upper end."""
        return b


@virtual
async def test_a_server_that_resets_each_stream_is_asked_less_and_less_often(net: Net, tmp_path: Path) -> None:
    """An update before each reset does not make a mirror hurry."""
    update = {"seq": 1, "path": "b", "change": "deleted", "size": None, "sha256": None, "published": 1.0}
    reset = {"reason": "epoch", "cursor": "e-0", "oldest": "e-0"}
    events = (
        f"id: e-1\nevent: update\ndata: {json.dumps(update)}\n\nid: e-0\nevent: reset\ndata: {json.dumps(reset)}\n\n"
    )
    stream = reply(200, events.encode(), "Content-Type: text/event-stream")
    async with hostile({"/files": reply(200, listing()), "/events": stream, "/events?after=e-0": stream}) as (
        url,
        heads,
    ):
        begin = asyncio.get_running_loop().time()
        mirror = a_mirror(tmp_path / "copy", url, retry=Retry(0.1, 8, rng=Longest()), relist=0)
        task = asyncio.create_task(following(mirror, []))
        await until_virtual(lambda: sum(head.startswith(b"GET /files ") for head in heads) == 6)
        assert asyncio.get_running_loop().time() - begin >= 0.2 + 0.4 + 0.8 + 1.6
        task.cancel()
        await asyncio.wait([task])


# What must not be lost


@virtual
async def test_a_source_that_is_empty_all_at_once_empties_no_copy(net: Net, tmp_path: Path) -> None:
    """Neither a listing nor a stream deletes more than half and a hundred files, unless it is told that it may."""
    many(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:
        await a_mirror(tmp_path / "copy").sync()
        shutil.copytree(tmp_path / "copy", tmp_path / "stream")
        task = asyncio.create_task(following(a_mirror(tmp_path / "stream"), []))
        await asyncio.sleep(1)
        remove(stage.directory, "old")
        look(stage)
        with pytest.raises(
            TooManyLosses, match="300 files deleted, and 150 may be: if that is right, start again with"
        ):
            await task
        assert len(files(tmp_path / "stream")) == MANY // 2
    async with served(tmp_path / "dir"):
        with pytest.raises(TooManyLosses, match=f"--max-delete {MANY}"):
            await a_mirror(tmp_path / "copy").sync()
        assert len(files(tmp_path / "copy")) == MANY
        await a_mirror(tmp_path / "copy", max_delete=MANY).sync()
        assert files(tmp_path / "copy") == {}


def test_a_copy_of_another_server_is_refused(tmp_path: Path) -> None:
    """A URL that the copy does not know is another tree's, unless it is adopted."""
    three_files(tmp_path / "one")
    write(tmp_path / "other", "b", "b")

    @on_a_loop
    async def body() -> None:
        with live(tmp_path / "one") as (one, _), live(tmp_path / "other") as (other, _):
            await a_mirror(tmp_path / "copy", one).sync()
            with pytest.raises(CopyError, match=f"is a copy of {one}, and {other} is another"):
                await a_mirror(tmp_path / "copy", other).sync()
            assert files(tmp_path / "copy") == files(tmp_path / "one")
            await a_mirror(tmp_path / "copy", other, adopt=True).sync()
            assert files(tmp_path / "copy") == files(tmp_path / "other")

    body()


@virtual
@pytest.mark.parametrize("adopt", [False, True])
async def test_what_is_served_is_no_copy_of_itself(net: Net, tmp_path: Path, adopt: bool) -> None:
    """What a server serves is refused as its copy, empty or adopted, by any name; a copy may be served itself."""
    (link := tmp_path / "link").symlink_to(tmp_path / "dir")
    if adopt:
        three_files(tmp_path / "dir")
    async with served(tmp_path / "dir"):
        for copy in (tmp_path / "dir", link):
            for use in (Mirror.plan, Mirror.sync, following_to_the_end):
                with pytest.raises(CopyError, match=r"dir is the directory that http://server serves, and no copy"):
                    await use(a_mirror(copy, adopt=adopt))
        await a_mirror(tmp_path / "copy").sync()
    async with served(tmp_path / "copy"):
        await a_mirror(tmp_path / "third").sync()
    assert files(tmp_path / "third") == files(tmp_path / "dir")


async def following_to_the_end(mirror: Mirror) -> None:
    async for _ in mirror.follow():
        pass


@virtual
async def test_a_server_of_another_tree_at_the_same_address_is_refused(net: Net, tmp_path: Path) -> None:
    """What a server is called counts more than where it is; one that is not called anything is known by its address."""
    three_files(tmp_path / "dir")
    stage = Stage(tmp_path / "dir")
    for source, right in (("one", True), ("other", False), ("one", True), (None, True), ("other", False)):
        stage.source = source
        await stage.start()
        if right:
            await a_mirror(tmp_path / "copy").sync()
        else:
            with pytest.raises(CopyError, match="is another"):
                await a_mirror(tmp_path / "copy").sync()
        await stage.stop()
        assert files(tmp_path / "copy") == files(tmp_path / "dir")


def test_a_server_that_keeps_its_state_is_known_at_another_address(tmp_path: Path) -> None:
    """Started again with the same --state at another port it is the same server; without, it is another."""
    directory, copy = tmp_path / "dir", tmp_path / "copy"
    three_files(directory)

    def sync(*, kept: bool) -> None:
        index, tree = Index(tmp_path / "state", directory), Tree(directory)
        index.load()
        tree.source = index.source if kept else None
        with serve(file_updates.create_app(Feed(), tree)) as server:
            asyncio.run(synced(server.url))

    async def synced(url: str) -> None:
        await a_mirror(copy, url).sync()

    sync(kept=True)
    write(directory, "b", "later")
    sync(kept=True)
    assert files(copy) == files(directory)
    remove(directory, "b")
    with pytest.raises(CopyError, match="is another"):
        sync(kept=False)
    assert (copy / "b").exists()


@virtual
async def test_a_copy_that_is_removed_while_it_is_kept_is_made_anew(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so, and the copy is complete again."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy")):
        shutil.rmtree(tmp_path / "copy")
        await until_virtual((tmp_path / "copy/a.txt").exists)
        await same(stage.directory, tmp_path / "copy")
        write(stage.directory, "b", "later")
        stage.look()
        await same(stage.directory, tmp_path / "copy")
        (line,) = faults(caplog)
        assert line.startswith(f"{tmp_path}/copy has been removed, or another directory is there now")


@contextlib.contextmanager
def swapped(one: Path, other: Path) -> Iterator[None]:
    """Two names exchanged again and again, by another thread."""
    ended, libc = threading.Event(), ctypes.CDLL(None)

    def swap() -> None:
        while not ended.wait(0.0001):
            libc.renameat2(-100, bytes(one), -100, bytes(other), 2)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged by renameat2")
def test_nothing_outside_is_touched_while_directories_become_links(tmp_path: Path) -> None:
    """A directory of the copy that is swapped with a link is never written or deleted through."""
    outside = write(tmp_path, "outside/f", "foreign").parent
    with Copy(tmp_path / "copy") as copy:
        copy.state.expect_all({"d/f": Version(1, sha(b"x"))}, "e-0")
        (tmp_path / "copy/d").mkdir()
        (tmp_path / "link").symlink_to(outside)
        done = 0
        with swapped(tmp_path / "copy/d", tmp_path / "link"):
            for _ in range(4000):
                with contextlib.suppress(OSError), copy.part() as part:
                    part.write(b"x")
                    copy.place(part, "d/f")
                    copy.settle()
                    copy.remove("d/f")
                    done += 1
                copy.settle()
        assert done
    assert contents(outside) == {"f": sha(b"foreign")}


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Another file system inside a copy."""
    place = tmp_path / "copy/mounted"
    place.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@virtual
async def test_a_mount_inside_the_copy_is_written_to(net: Net, tmp_path: Path, mounted: Path) -> None:
    """Files appear whole on another file system, come from there, and go from there."""
    three_files(tmp_path / "dir")
    write(tmp_path / "dir", "mounted/a", "alpha and more").chmod(0o755)
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy", adopt=True)):
        assert (mounted / "a").stat().st_mode & 0o100
        (stage.directory / "mounted/a").rename(stage.directory / "b")
        (stage.directory / "a.txt").rename(stage.directory / "mounted/b")
        look(stage)
        await same(stage.directory, tmp_path / "copy")
        assert set(contents(mounted)) == {"b"}


# What is done by hand


def test_verify_mends_and_a_dry_run_only_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage that keeps a file's size and time is found by --verify; --dry-run names what would be done, untouched."""
    three_files(tmp_path / "dir")
    write(tmp_path / "dir", "secret/key", "left out")
    copy, options = tmp_path / "copy", ["--once", "--exclude", "secret/"]
    with live(tmp_path / "dir") as (url, publish):
        assert main([url, str(copy), "--dry-run", "--exclude", "secret/"]) == 0
        assert not copy.exists()
        assert capsys.readouterr().out.splitlines() == [
            f"would fetch {path}" for path in ("a.txt", "reports/old/q2.csv", "reports/q3.csv")
        ]
        assert main([url, str(copy), *options]) == 0
        assert set(files(copy)) == {"a.txt", "reports/old/q2.csv", "reports/q3.csv"}
        (tmp_path / "dir/a.txt").rename(tmp_path / "dir/b.txt")
        publish()
        before = (copy / ".mirror/state").read_bytes()
        capsys.readouterr()
        assert main([url, str(copy), "--dry-run", "--exclude", "secret/"]) == 0
        assert capsys.readouterr().out == "would copy b.txt\nwould delete a.txt\n"
        assert (copy / ".mirror/state").read_bytes() == before
        assert main([url, str(copy), *options]) == 0

        stat = (copy / "b.txt").stat()
        (copy / "b.txt").write_bytes(b"ALPHA")
        os.utime(copy / "b.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert main([url, str(copy), *options, "--verify"]) == 0
        assert (copy / "b.txt").read_bytes() == b"alpha"
        assert main([url, str(copy), "--once", "--exclude", "!x"]) == 2


def test_what_is_left_out_is_counted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links, special files, foreign names, large files and what is ignored are told by their kind, while they stand."""
    directory, copy = tmp_path / "dir", tmp_path / "copy"
    three_files(directory)
    for name in ("link", "reports/link"):
        (directory / name).symlink_to("a.txt")
    os.mkfifo(directory / "pipe")
    (directory / os.fsdecode(b"\xff")).write_bytes(b"x")
    write(directory, "large", bytes(1000))
    write(directory, "secret/key", "secret")
    write(directory, "other/.mirror/state", "")
    tree, feed = Tree(directory, limit=999, ignore=["secret/"]), Feed()
    with serve(file_updates.create_app(feed, tree)) as server:
        assert main([server.url, str(copy), "--once"]) == 0
        assert capsys.readouterr().out.endswith(
            "; left out: 2 symbolic links, 1 special files, 1 with names that are not UTF-8, 1 too large,"
            " 1 mirrors' copies, 1 ignored\n"
        )
        assert set(files(copy)) == {"a.txt", "reports/old/q2.csv", "reports/q3.csv"}
        for name in ("link", "pipe", "large"):
            (directory / name).unlink()
        assert tree.look(["link", "pipe", "large"]) == []
        assert tree.left_out() == {"copies": 1, "ignored": 1, "links": 1, "not_utf8": 1}
        remove(directory, "reports/link")
        assert [*tree.sweep()]
        assert tree.left_out() == {"copies": 1, "ignored": 1, "not_utf8": 1}


@pytest.mark.parametrize("said", [5, [], {"links": "2"}, {"links": -1}, {"links": True}, {"\x1b[2J": 2}, {}])
def test_a_strange_count_of_what_is_left_out_says_nothing(said: object) -> None:
    """What a listing says there is never printed as it came, and ends no mirror."""
    body = json.dumps({"cursor": "e-0", "files": [], "left_out": said}).encode()
    assert parsed_listing(body).left_out == ""


@virtual
async def test_only_what_is_wanted_is_copied_and_what_is_not_stays(net: Net, tmp_path: Path) -> None:
    """A path that is not wanted is neither fetched nor, if it is there, deleted."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:
        await a_mirror(tmp_path / "copy").sync()
        mirror = Mirror(stage.url, tmp_path / "copy", wants=lambda path: not path.startswith("reports/"))
        remove(stage.directory, "reports/q3.csv")
        write(stage.directory, "reports/new", "new")
        write(stage.directory, "b", "b")
        stage.look()
        applied: list[Applied] = await mirror.sync()
        assert [change.path for change in applied] == ["b"]
        assert mirror.counters.excluded == 2
    assert (tmp_path / "copy/reports/q3.csv").exists()
