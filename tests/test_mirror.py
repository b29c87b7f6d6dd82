"""The mirror against the real service: what it applies, what it survives, what it refuses. In virtual time, mostly."""

import asyncio
import contextlib
import functools
import gzip
import inspect
import itertools
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import termios
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from lab.clients import GaveUp, Retry
from lab.clients.answers import BadAnswer, BadStatus
from lab.mirror import Applied, CopyError, Mirror, fetch
from lab.mirror.__main__ import main
from lab.mirror.bundle import SMALL
from lab.mirror.copy import Copy
from lab.mirror.names import UnsafePath, Version, check_name
from lab.mirror.shelf import KEPT
from lab.proxies.wire import Wire
from lab.virtual import Link, Net, run_virtual
from servers import file_updates
from servers.background import serve
from servers.feed import Feed
from servers.guard import RETRY_AFTER
from servers.tree import Tree
from tests.support import PATIENCE, command, ended, on_a_loop, until
from tests.support_mirror import (
    Stage,
    a_mirror,
    contents,
    files,
    flipped,
    following,
    remove,
    served,
    truncated,
    write,
)
from tests.support_mirror import sha256 as sha

D = 0.025  # s, one way
TOKEN = "a-token-of-many-characters"


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in virtual time; its parameter `net` is the network."""

    @functools.wraps(test)
    def run(**parameters: Any) -> None:
        run_virtual(lambda net: test(net, **parameters), link=Link(delay=D), limit=600, wall=110)

    signature = inspect.signature(test)
    others = [parameter for name, parameter in signature.parameters.items() if name != "net"]
    run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]  # what pytest reads
    return run


@contextlib.asynccontextmanager
async def followed(stage: Stage, mirror: Mirror) -> AsyncIterator[list[Applied]]:
    """What a mirror applies, from the moment when it has caught up with what is there."""
    applied: list[Applied] = []
    task = asyncio.create_task(following(mirror, applied))
    try:
        await same(stage.directory, mirror.copy)
        yield applied
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def same(directory: Path, copy: Path, seconds: float = 60) -> None:
    """Return when both hold the same files, and stay so."""
    async with asyncio.timeout(seconds):
        while files(directory) != files(copy):  # noqa: ASYNC110  # virtual: it costs nothing
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)  # what is late would now undo it
    assert files(directory) == files(copy)


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What mirrors have logged."""
    return [record.getMessage() for record in caplog.records if record.name == "lab.mirror"]


def three_files(directory: Path) -> None:
    write(directory, "a.txt", "alpha")
    write(directory, "reports/q3.csv", "1;2;3")
    write(directory, "reports/old/q2.csv", "0;0;0")


# What it applies


@virtual
async def test_sync_makes_an_identical_copy_and_does_nothing_the_second_time(net: Net, tmp_path: Path) -> None:
    """`sync` fetches everything once; on a copy that is right already it only lists."""
    three_files(tmp_path / "dir")
    write(tmp_path / "dir", "100% ?#&;+/ü\n%20<script>.txt", "a name that must be encoded")
    write(tmp_path / "dir", "empty", "")
    async with served(tmp_path / "dir") as stage:
        mirror = a_mirror(tmp_path / "copy")
        applied = await mirror.sync()
        assert contents(tmp_path / "copy") == contents(stage.directory)
        assert {change.how for change in applied} == {"fetched"}
        assert mirror.counters.fetched == len(applied) == 5
        assert mirror.counters.bytes == sum(change.size or 0 for change in applied)
        again = a_mirror(tmp_path / "copy")
        assert await again.sync() == []
        assert again.counters.fetched == again.counters.bytes == 0


EDITS: dict[str, tuple[Callable[[Path], object], list[tuple[str, str, str]]]] = {
    "create": (lambda top: write(top, "new/b", "beta"), [("new/b", "added", "fetched")]),
    "modify": (lambda top: write(top, "a.txt", "alphabet"), [("a.txt", "modified", "fetched")]),
    "modify, same size": (lambda top: write(top, "a.txt", "ALPHA"), [("a.txt", "modified", "fetched")]),
    "delete": (lambda top: remove(top, "a.txt"), [("a.txt", "deleted", "removed")]),
    "rename": (
        lambda top: (top / "a.txt").rename(top / "z.txt"),
        [("a.txt", "deleted", "removed"), ("z.txt", "added", "copied")],
    ),
    "rename a directory": (
        lambda top: (top / "reports").rename(top / "archive"),
        [
            ("reports/old/q2.csv", "deleted", "removed"),
            ("reports/q3.csv", "deleted", "removed"),
            ("archive/old/q2.csv", "added", "copied"),
            ("archive/q3.csv", "added", "copied"),
        ],
    ),
    "copy": (lambda top: write(top, "twin", "alpha"), [("twin", "added", "copied")]),
    "exchange two": (
        lambda top: (write(top, "a.txt", "1;2;3"), write(top, "reports/q3.csv", "alpha")),
        [("a.txt", "modified", "copied"), ("reports/q3.csv", "modified", "")],
    ),
    "a file becomes a directory": (
        lambda top: write(remove(top, "a.txt"), "x/y", "below"),
        [("a.txt", "deleted", "removed"), ("a.txt/x/y", "added", "fetched")],
    ),
    "a directory becomes a file": (
        lambda top: remove(top, "reports").write_text("flat"),
        [
            ("reports/old/q2.csv", "deleted", "removed"),
            ("reports/q3.csv", "deleted", "removed"),
            ("reports", "added", "fetched"),
        ],
    ),
    "delete a directory": (
        lambda top: remove(top, "reports"),
        [("reports/old/q2.csv", "deleted", "removed"), ("reports/q3.csv", "deleted", "removed")],
    ),
}


@pytest.mark.parametrize("name", EDITS)
@virtual
async def test_every_kind_of_edit_is_followed(
    net: Net, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each edit reaches the copy, a rename without a fetch; no empty directory and no removed file stays behind."""
    edit, expected = EDITS[name]
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy")) as applied:
        applied.clear()
        edit(stage.directory)
        stage.look()
        await same(stage.directory, tmp_path / "copy")
        assert contents(tmp_path / "copy") == contents(stage.directory)
        assert sorted((change.path, change.change) for change in applied) == sorted(e[:2] for e in expected)
        how = {change.path: change.how for change in applied}
        assert all(how[path] == expected_how for path, _, expected_how in expected if expected_how)
        await asyncio.sleep(2 * KEPT)
        assert sorted(contents(tmp_path / "copy/.mirror")) == ["lock", "state"]
        assert faults(caplog) == []


@virtual
async def test_an_update_is_applied_two_round_trips_after_it_was_published(net: Net, tmp_path: Path) -> None:
    """Without jitter, on an open connection: one transit for the news and a round trip for the bytes."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy", jitter=0)) as applied:
        write(stage.directory, "a.txt", "news")
        stage.look()
        await same(stage.directory, tmp_path / "copy")
        (change,) = applied[-1:]
        assert change.published is not None
        assert change.applied - change.published == pytest.approx(3 * D, abs=0.006)  # 5 ms: the server's window
        assert (change.how, change.fetched, change.sha256) == ("fetched", 4, sha(b"news"))


@virtual
async def test_nothing_is_missed_between_listing_and_watching(net: Net, tmp_path: Path) -> None:
    """What changes when everything that was listed is there, and before the events are asked for, is applied."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:

        async def before(path: str) -> None:
            if path == "/events" and stage.feed.head == 0:
                await same(stage.directory, tmp_path / "copy")
                write(stage.directory, "a.txt", "changed in between")
                remove(stage.directory, "reports/q3.csv")
                write(stage.directory, "b", "new")
                stage.look()

        stage.meddler.before = before
        applied: list[Applied] = []
        task = asyncio.create_task(following(a_mirror(tmp_path / "copy"), applied))
        await until_virtual(lambda: len(applied) == 6)
        await same(stage.directory, tmp_path / "copy")
        assert [stage.feed.head, len(applied)] == [3, 6]
        task.cancel()
        await asyncio.wait([task])


@virtual
async def test_the_last_update_of_a_path_wins(net: Net, tmp_path: Path) -> None:
    """While a fetch is under way the file is changed, deleted and made again: the last version is what stays."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage, followed(stage, a_mirror(tmp_path / "copy", jitter=0)):
        net.link.rate = 100_000
        edits: list[Callable[[], Path]] = [
            lambda: write(stage.directory, "a.txt", b"1" * 100_000),
            lambda: write(stage.directory, "a.txt", b"2" * 50_000),
            lambda: remove(stage.directory, "a.txt"),
            lambda: write(stage.directory, "a.txt/below", b"3" * 70_000),
            lambda: remove(stage.directory, "a.txt"),
            lambda: write(stage.directory, "a.txt", b"4" * 1000),
        ]
        for edit in edits:
            edit()
            stage.look()
            await asyncio.sleep(0.2)
        await same(stage.directory, tmp_path / "copy")


@virtual
async def test_a_fetch_that_is_out_of_date_when_it_arrives_undoes_nothing(net: Net, tmp_path: Path) -> None:
    """A body whose file has become a directory is dropped; one that a new listing has overtaken is put right."""
    three_files(tmp_path / "dir")
    net.link.rate = 100_000
    async with served(tmp_path / "dir", history=1) as stage, followed(stage, mirror := a_mirror(tmp_path / "copy")):

        def slowly(path: str, after: str) -> Path:
            """A version that takes two seconds on its way, whatever the server thinks of it meanwhile."""
            stage.meddler.tamper[path] = [lambda body: body]
            name = write(stage.directory, path, after * 200_000)
            stage.look()
            return name

        slowly("a.txt", "2")
        await asyncio.sleep(0.5)
        remove(stage.directory, "a.txt")
        stage.look()
        await asyncio.sleep(0.2)
        write(stage.directory, "a.txt/x", "below")
        stage.look()
        await asyncio.sleep(0.5)
        assert (tmp_path / "copy/a.txt/x").exists()  # it does not wait for the other to arrive
        await asyncio.sleep(5)
        await same(stage.directory, tmp_path / "copy")

        slowly("reports/q3.csv", "3")
        await asyncio.sleep(0.5)
        write(stage.directory, "reports/q3.csv", "1;2;3")
        write(stage.directory, "b", "more than the history holds")
        stage.look()
        await asyncio.sleep(5)
        assert mirror.counters.relisted == 1
        await same(stage.directory, tmp_path / "copy")


@virtual
async def test_what_is_copied_within_the_copy_is_verified_too(net: Net, tmp_path: Path) -> None:
    """A file that somebody has changed in the copy is not what a renamed one is made from."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage, followed(stage, mirror := a_mirror(tmp_path / "copy")):
        write(tmp_path / "copy", "a.txt", "ALPHA")
        (stage.directory / "a.txt").rename(stage.directory / "z.txt")
        stage.look()
        await same(stage.directory, tmp_path / "copy")
        assert mirror.counters.copied == 0


@virtual
async def test_fetches_are_parallel_up_to_the_limit_and_spread_by_jitter(net: Net, tmp_path: Path) -> None:
    """Large files keep a way free for news, and many mirrors do not all ask in the same instant."""
    for number in range(20):
        write(tmp_path / "dir", f"{number}", f"{number:06}" * (SMALL // 6 + 1))
    async with served(tmp_path / "dir") as stage:
        now = most = 0

        async def before(path: str) -> None:
            nonlocal now, most
            if path.startswith("/files/"):
                now += 1
                most = max(most, now)
                asked.append(round(asyncio.get_running_loop().time(), 4))
                await asyncio.sleep(0.1)

        async def after(path: str) -> None:
            nonlocal now
            now -= path.startswith("/files/")

        asked: list[float] = []
        stage.meddler.before, stage.meddler.after = before, after
        await a_mirror(tmp_path / "copy", parallel=4).sync()
        assert most == 3
        for number in range(20):
            remove(stage.directory, f"{number}")
        stage.look()
        asked.clear()
        stage.meddler.before = stage.meddler.after = None
        async with contextlib.AsyncExitStack() as stack:
            for number in range(8):
                retry = Retry(rng=random.Random(number))
                mirror = a_mirror(tmp_path / f"copy {number}", jitter=0.5, retry=retry)
                await stack.enter_async_context(followed(stage, mirror))
            stage.meddler.before = before
            write(stage.directory, "new", "new")
            stage.look()
            for number in range(8):
                await same(stage.directory, tmp_path / f"copy {number}")
        assert len(asked) == 8
        assert max(asked) - min(asked) < 0.5
        assert len(set(asked)) > 1


# What it survives


@pytest.mark.parametrize("tamper", [flipped, truncated, lambda body: body + b"more", lambda body: b""])
@virtual
async def test_wrong_bytes_are_never_taken(
    net: Net, tmp_path: Path, tamper: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that is not what was announced is fetched again until it is, and named in one line."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage, followed(stage, mirror := a_mirror(tmp_path / "copy")):
        stage.meddler.tamper["a.txt"] = [tamper] * 3
        write(stage.directory, "a.txt", "ALPHA")
        stage.look()
        while stage.meddler.tamper["a.txt"]:
            assert (tmp_path / "copy/a.txt").read_text() == "alpha"
            await asyncio.sleep(0.05)
        await same(stage.directory, tmp_path / "copy")
        assert not list((tmp_path / "copy/.mirror").glob("part-*"))
        assert mirror.counters.refetched == 3
        (line,) = faults(caplog)
        assert re.fullmatch(r"'a.txt' cannot be fetched \(\d bytes with SHA-256 \S+ came, .*\): trying again", line)


@virtual
async def test_a_file_changed_again_and_back_ends_as_it_was_announced(net: Net, tmp_path: Path) -> None:
    """A newer version than announced is taken as its ETag says; if it is changed back, no update says so."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage, followed(stage, mirror := a_mirror(tmp_path / "copy")):
        os.utime(write(stage.directory, "a.txt", "announced"), (1, 1))
        stage.look()
        write(stage.directory, "a.txt", "changed again")
        await same(stage.directory, tmp_path / "copy")
        os.utime(write(stage.directory, "a.txt", "announced"), (1, 1))
        stage.look()  # as far as the scan knows, nothing has happened
        assert stage.feed.head == 1
        await same(stage.directory, tmp_path / "copy")
        assert mirror.counters.refetched == 0


@virtual
async def test_a_file_that_is_gone_when_it_is_fetched_may_come_back(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """404 is no verdict: it is asked for until an update says that it is deleted; `sync` does not wait for that."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:
        (tmp_path / "dir/a.txt").rename(tmp_path / "aside")
        assert len(await a_mirror(tmp_path / "copy").sync()) == 2
        (tmp_path / "aside").rename(tmp_path / "dir/a.txt")
        async with followed(stage, a_mirror(tmp_path / "copy")):
            remove(stage.directory, "reports/q3.csv")
            stage.look()
            await same(stage.directory, tmp_path / "copy")
            write(stage.directory, "never", "to be had")
            stage.look()
            (tmp_path / "dir/never").rename(tmp_path / "aside")
            await asyncio.sleep(60)
            assert faults(caplog) == ["'never' is announced, but cannot be had (404): trying again"]
            stage.look()
            await same(stage.directory, tmp_path / "copy")


@virtual
async def test_a_mirror_says_once_that_it_is_up_to_date(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line after the first copy, none after an update, and one after each start and each new listing."""
    caplog.set_level(logging.INFO, "lab.mirror.news")
    three_files(tmp_path / "dir")
    count = len(files(tmp_path / "dir"))

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "lab.mirror.news"]

    async with served(tmp_path / "dir") as stage:
        async with followed(stage, a_mirror(tmp_path / "copy")):
            await same(stage.directory, tmp_path / "copy")
            assert told() == [f"up to date: {count} files, cursor log1-0"]
            write(stage.directory, "another", "one")
            stage.look()
            await same(stage.directory, tmp_path / "copy")
            await stage.stop()
            await stage.start()
            await asyncio.sleep(60)
            assert told()[1:] == [f"up to date: {count + 1} files, cursor log2-0"]
        async with followed(stage, a_mirror(tmp_path / "copy")):
            await asyncio.sleep(1)
        assert told()[2:] == [f"up to date: {count + 1} files, cursor log2-0"]


@pytest.mark.parametrize("fault", ["cut", "black hole", "restart", "server error"])
@virtual
async def test_faults_of_link_and_server_are_survived_and_named_once(
    net: Net, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever happens to the connection, the copy is right in the end, and one line says what it was."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage, followed(stage, mirror := a_mirror(tmp_path / "copy")):
        match fault:
            case "cut":
                net.link.cut()
            case "black hole":
                net.link.blackhole()
                asyncio.get_running_loop().call_later(20, net.link.heal)
            case "server error":
                failures = [RuntimeError("on purpose")] * 3

                async def fail(path: str) -> None:
                    if failures and path.startswith("/files/"):
                        raise failures.pop()

                stage.meddler.before = fail
            case "restart":
                await stage.stop()
                remove(stage.directory, "reports/old/q2.csv")  # nobody looks
                await asyncio.sleep(10)
                await stage.start()
        write(stage.directory, "a.txt", fault)
        stage.look()
        await same(stage.directory, tmp_path / "copy")
        assert mirror.counters.relisted == (fault == "restart")
        lines = [line for line in faults(caplog) if line.startswith("the link to http://server failed (")]
        assert len(lines) == len(set(lines))
        assert 1 <= len(lines) <= 2


@pytest.mark.parametrize("path", ["/files", "/events", "/files/a.txt"])
@virtual
async def test_a_server_that_is_full_is_left_alone_for_as_long_as_it_asks(
    net: Net, tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a 503 a mirror asks again when the Retry-After is over, no sooner, says why once, and then goes on."""
    three_files(tmp_path / "dir")
    asked: list[float] = []
    async with served(tmp_path / "dir") as stage:
        behind = stage.meddler.app

        async def full(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] != path or len(asked) == 4:
                return await behind(scope, receive, send)
            refusal = JSONResponse({"detail": "this server holds enough"}, 503, {"Retry-After": RETRY_AFTER})
            return await refusal(scope, receive, send)

        async def before(now: str) -> None:
            if now == path and len(asked) < 4:
                asked.append(asyncio.get_running_loop().time())

        stage.meddler.app, stage.meddler.before = full, before
        async with followed(stage, a_mirror(tmp_path / "copy", retry=Retry(0, 0))):
            write(stage.directory, "a.txt", "news")
            stage.look()
            await same(stage.directory, tmp_path / "copy")
    transits = 4 if path == "/events" else 2  # the answer and the next question; a stream's is on a new connection
    pauses = [later - earlier - transits * D for earlier, later in itertools.pairwise(asked)]
    assert pauses == pytest.approx([float(RETRY_AFTER)] * 3)
    (line,) = faults(caplog)
    assert line.startswith("the link to http://server failed (Unavailable: the server answered 503: this server holds")


@virtual
async def test_expired_history_leads_to_a_new_listing(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A mirror that was away for longer than the history lists anew, and removes what has gone meanwhile."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir", history=2) as stage:
        await a_mirror(tmp_path / "copy").sync()
        for number in range(5):
            write(stage.directory, f"{number}", f"{number}")
            stage.look()
        remove(stage.directory, "reports")
        stage.look()
        async with followed(stage, mirror := a_mirror(tmp_path / "copy")):
            assert mirror.counters.relisted == 1
            assert contents(tmp_path / "copy") == contents(stage.directory)
            assert faults(caplog) == ["the log does not reach back to log1-0 (expired): listing"]


@virtual
async def test_it_resumes_from_its_state_without_a_listing(net: Net, tmp_path: Path) -> None:
    """A mirror that starts again asks for what is later than its cursor, and repairs what was changed in the copy."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:
        async with followed(stage, a_mirror(tmp_path / "copy")):
            pass
        write(stage.directory, "b", "while it was away")
        stage.look()
        write(tmp_path / "copy", "a.txt", "ALPHA")  # by somebody, of the same size
        remove(tmp_path / "copy", "reports/q3.csv")
        requests: list[str] = []

        async def before(path: str) -> None:
            requests.append(path)

        stage.meddler.before = before
        async with followed(stage, a_mirror(tmp_path / "copy")) as applied:
            assert {change.path for change in applied} == {"a.txt", "b", "reports/q3.csv"}
        assert sorted(requests) == ["/bundle", "/events", "/files/b"]


@virtual
async def test_an_obstacle_is_named_once_and_stops_nothing_else(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be written is tried again until it can, in the midst of everything else; `sync` gives up in time."""
    three_files(tmp_path / "dir")
    write(tmp_path / "copy", "a.txt/somebody's", "own file where a file must go")
    async with served(tmp_path / "dir") as stage:
        with pytest.raises(GaveUp, match=r"'a.txt' cannot be had, for 10 s \(IsADirectoryError"):
            await a_mirror(tmp_path / "copy", adopt=True, retry=Retry(1, 1, give_up_after=10)).sync()
        caplog.clear()
        applied: list[Applied] = []
        task = asyncio.create_task(following(a_mirror(tmp_path / "copy"), applied))
        await asyncio.sleep(5)
        write(stage.directory, "reports/q3.csv", "goes on")
        stage.look()
        await asyncio.sleep(5)
        assert (tmp_path / "copy/reports/q3.csv").read_text() == "goes on"
        assert faults(caplog) == ["'a.txt' cannot be written (Is a directory): trying again"]
        remove(tmp_path / "copy", "a.txt")
        await same(stage.directory, tmp_path / "copy")
        task.cancel()
        await asyncio.wait([task])


@virtual
async def test_no_answer_is_given_up_in_time(net: Net, tmp_path: Path) -> None:
    """Nobody there, nobody any more, a link that is dead: `GaveUp` after `give_up_after` seconds, not later."""
    loop, retry = asyncio.get_running_loop(), Retry(1, 5, give_up_after=20)
    for wait_for in (
        a_mirror(tmp_path / "copy", retry=retry).sync(),
        following(a_mirror(tmp_path / "copy", retry=retry), []),
    ):
        begin = loop.time()
        with pytest.raises(GaveUp, match=r"no listing from http://server/files, for 20 s \(ConnectionRefusedError"):
            await wait_for
        assert loop.time() - begin == pytest.approx(20)
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:
        async with followed(stage, a_mirror(tmp_path / "copy")):
            pass
        net.link.blackhole()
        begin = loop.time()
        with pytest.raises(GaveUp, match="no answer from http://server/events for 20 s"):
            await following(a_mirror(tmp_path / "copy", retry=retry), [])
        assert loop.time() - begin == pytest.approx(20)
        net.link.heal()
        net.link.cut()


@virtual
async def test_a_token_goes_out_with_every_request_and_a_refusal_ends_it(net: Net, tmp_path: Path) -> None:
    """Listing, events and bundles are asked for with the token; 401 is not tried again."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:
        async with followed(stage, a_mirror(tmp_path / "copy", token=TOKEN)):
            pass
        assert len(stage.meddler.headers) >= 3
        assert {headers["authorization"] for headers in stage.meddler.headers} == {f"Bearer {TOKEN}"}
    with pytest.raises(BadStatus, match="404"):
        async with served(tmp_path / "dir"):
            await a_mirror(tmp_path / "copy", Stage.url + "/elsewhere").sync()


# What it refuses


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/etc/passwd", "../outside", "a/../../outside", "a//b", "a/", "./a", "a\0b", "\ud800",
     ".mirror", ".mirror/state", ".MIRROR/state", ".mir\u200cror/state", ".mirror./state",
     "x" * 256, "d/" + "é" * 128, "d/" * 2048 + "e", "a/" * 35_000 + "b"],
)  # fmt: skip
def test_a_path_that_leads_out_of_the_copy_is_refused(path: str) -> None:
    """Absolute, with "..", not text, too long, or among the mirror's own files: no such path is ever written."""
    with pytest.raises(UnsafePath) as refusal:
        check_name(path)
    assert len(str(refusal.value)) < 200


def test_the_longest_path_is_taken() -> None:
    """A name of 255 bytes and a path of 4096 are what Linux allows."""
    check_name("/".join(["é" * 127 + "x", *["y" * 255] * 15]))
    check_name("d/" * 2047 + "de")


@pytest.mark.parametrize("path", ["a:b", "d/a?", "CON", "nul.txt", "com1.a/b", "x.", "y /z", "a\\b", "line\nbreak"])
def test_a_name_that_windows_reads_differently_is_refused_there(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream, a device, a name whose end is dropped: on Windows each would be another file than the server's."""
    check_name(path)
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        check_name("console/auxiliary.txt")
        with pytest.raises(UnsafePath, match="Windows"):
            check_name(path)


@virtual
async def test_a_server_that_names_unsafe_paths_writes_nothing_outside(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Unsafe paths of a listing or of an update are refused, counted and named in a line each; the rest goes on."""
    three_files(tmp_path / "dir")
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside", "kept", "kept")
    async with served(tmp_path / "dir") as stage:
        mirror = a_mirror(tmp_path / "copy")
        async with followed(stage, mirror):
            (tmp_path / "copy/link").symlink_to(tmp_path / "outside")
            (tmp_path / "copy/name").symlink_to(tmp_path / "outside/kept")
            write(stage.directory, "link/x", "through a link")
            write(stage.directory, "name", "in a link's place")
            stage.feed.publish(".mirror/state", "added", size=8, sha256=sha(b"not mine"))
            write(stage.directory, "good", "good")
            stage.look()
            await until_virtual(lambda: (tmp_path / "copy/good").exists() and len(faults(caplog)) == 2)
            remove(stage.directory, "link")
            write(stage.directory, "link", "a file now")
            stage.look()
            await until_virtual(lambda: (tmp_path / "copy/link").is_file())
            assert faults(caplog) == [
                "refused '.mirror/state': .mirror is the mirror's own",
                "'link/x' cannot be written ('link' is a symbolic link): trying again",
            ]
        hostile = {"path": "../outside/evil", "size": 1, "sha256": sha(b"x")}
        unchecked = {"path": "unchecked", "size": 1, "sha256": "../../outside/evil"}
        stage.meddler.tamper["/files"] = [
            lambda body: json.dumps({"cursor": "log1-0", "files": [hostile, unchecked]}).encode()
        ]
        await (refusing := a_mirror(tmp_path / "copy")).sync()
        assert refusing.counters.refused == 2
    assert contents(tmp_path / "outside") == {"kept": sha(b"kept")}
    assert {path.partition("/")[0] for path in contents(tmp_path)} == {"dir", "copy", "outside"}


async def until_virtual(condition: Callable[[], object]) -> None:
    """Return once it holds; within a virtual minute."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # virtual: it costs nothing
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"cursor": "c", "files": []}', b'{"cursor": "log1-0"}', b'{"cursor": "log1-0", "files": [{}]}',
     b'{"cursor": "log1-0", "files": [{"path": 1, "size": 1, "sha256": ""}]}', b"[" * 100_000],
)  # fmt: skip
@virtual
async def test_a_listing_that_is_none_ends_it(net: Net, tmp_path: Path, body: bytes) -> None:
    """What is not a listing is a BadAnswer, and changes nothing."""
    three_files(tmp_path / "dir")
    async with served(tmp_path / "dir") as stage:
        stage.meddler.tamper["/files"] = [lambda _: body]
        with pytest.raises(BadAnswer):
            await a_mirror(tmp_path / "copy").sync()
        assert contents(tmp_path / "copy") == {}


@virtual
async def test_a_name_that_cannot_be_is_refused_once_and_the_rest_is_complete(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Too long for any disk, or for this place on it: neither `sync` nor `follow` tries that for ever."""
    three_files(tmp_path / "dir")
    place = tmp_path / "copy"
    while len(bytes(place)) < 3700:
        place /= "p" * 200
    long = "/".join(["q" * 200] * 2)
    async with served(tmp_path / "dir") as stage:
        write(tmp_path / "dir", long, "short enough for the server")
        stage.look()
        named = [{"path": path, "size": 1, "sha256": sha(b"x")} for path in ("x" * 300, "a/" * 35_000 + "b")]
        stage.meddler.tamper["/files"] = [
            lambda body: json.dumps(json.loads(body) | {"files": json.loads(body)["files"] + named}).encode()
        ]
        async with asyncio.timeout(60):
            await (mirror := a_mirror(place)).sync()
        assert mirror.counters.refused == 3
        assert set(files(place)) == set(files(stage.directory)) - {long}
        lines = faults(caplog)
        assert [line.rpartition(": ")[2] for line in lines] == [
            "this disk holds no such name (File name too long)",
            "a name has 255 bytes at most, a path 4096",
            "a name has 255 bytes at most, a path 4096",
        ]
        assert max(map(len, lines)) < 500
        task = asyncio.create_task(following(a_mirror(place), []))
        write(stage.directory, "later", "goes on")
        stage.look()
        await until_virtual((place / "later").exists)
        await asyncio.sleep(60)
        assert len(faults(caplog)) == 3
        task.cancel()
        await asyncio.wait([task])


@virtual
async def test_a_url_keeps_its_query_and_loses_its_fragment(net: Net, tmp_path: Path) -> None:
    """What a hub's URL carries goes out with listing, events and files alike; what names a place in a page does not."""
    three_files(tmp_path / "dir")
    write(tmp_path / "dir", "100% ?#&;+/ü", "a name that must be encoded")
    async with served(tmp_path / "dir") as stage:
        async with followed(stage, a_mirror(tmp_path / "copy", f"{stage.url}/?token=abc#top")):
            write(stage.directory, "a.txt", "news")
            stage.look()
            await same(stage.directory, tmp_path / "copy")
        assert set(stage.meddler.queries) == {"token=abc"}


@virtual
async def test_only_the_mirrors_own_files_are_ever_removed(net: Net, tmp_path: Path) -> None:
    """A directory with files of others is refused; adopted, what is right is kept, the rest of it left alone."""
    three_files(tmp_path / "dir")
    write(tmp_path / "copy", "a.txt", "alpha")
    write(tmp_path / "copy", "reports/q3.csv", "3;2;1")
    write(tmp_path / "copy", "reports/mine", "mine")
    async with served(tmp_path / "dir") as stage:
        with pytest.raises(CopyError, match=r"copy is not empty, and no mirror made it \(--adopt takes it over\)"):
            await a_mirror(tmp_path / "copy").sync()
        applied = await a_mirror(tmp_path / "copy", adopt=True).sync()
        assert {change.path: change.how for change in applied} == {
            "a.txt": "kept",
            "reports/q3.csv": "fetched",
            "reports/old/q2.csv": "fetched",
        }
        remove(stage.directory, "reports")
        stage.feed.publish("reports/mine", "deleted")
        stage.look()
        async with followed_until(a_mirror(tmp_path / "copy"), lambda: not (tmp_path / "copy/reports/old").exists()):
            assert set(files(tmp_path / "copy")) == {"a.txt", "reports/mine"}


@contextlib.asynccontextmanager
async def followed_until(mirror: Mirror, condition: Callable[[], object]) -> AsyncIterator[None]:
    """A mirror at work, from when the condition holds."""
    task = asyncio.create_task(following(mirror, []))
    await until_virtual(condition)
    await asyncio.sleep(1)
    yield
    task.cancel()
    await asyncio.wait([task])


def test_a_copy_belongs_to_one_mirror_at_a_time(tmp_path: Path) -> None:
    """Nobody else can open an open copy; a directory that cannot be one says why."""
    with Copy(tmp_path / "copy"), pytest.raises(CopyError, match="another mirror is at work in"):
        Copy(tmp_path / "copy")
    Copy(tmp_path / "copy").close()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Copy(tmp_path / "file")
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap/.mirror").symlink_to(tmp_path / "copy/.mirror")
    with pytest.raises(CopyError, match="symbolic link"):
        Copy(tmp_path / "trap")


# What a server cannot make it do

Reply = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def hostile(replies: dict[str, Reply]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers each path in its own way, and then closes: its URL, and the heads of the requests."""
    heads: list[bytes] = []

    tasks = set[asyncio.Task[Any]]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                await replies.get(heads[-1].split(b" ")[1].decode(), reply(404))(writer)
                await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def reply(status: int, body: bytes = b"", *headers: str, endless: bytes = b"") -> Reply:
    """A whole answer, or one whose body goes on for as long as anybody reads."""

    async def write_it(writer: asyncio.StreamWriter) -> None:
        length = [] if endless else [f"Content-Length: {len(body)}"]
        head = [f"HTTP/1.1 {status} X", "Connection: close", *length, *headers, "", ""]
        writer.write("\r\n".join(head).encode() + body)
        while endless:
            writer.write(endless)
            await writer.drain()

    return write_it


def listing(*files: tuple[str, bytes]) -> bytes:
    """The body of a listing."""
    found = [{"path": path, "size": len(data), "sha256": sha(data)} for path, data in files]
    return json.dumps({"cursor": "e-0", "files": found}).encode()


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (f'ETag: "{sha(b"x")}"', f"Content-Length: {2**40}"),
        (f'ETag: "{sha(b"y")}"',),
        ('ETag: "no hash"', f"Content-Length: {2**40}"),
    ],
)
@virtual
async def test_a_file_is_no_longer_than_announced(net: Net, tmp_path: Path, headers: tuple[str, ...]) -> None:
    """What goes on beyond the announced size is broken off there, whatever its head says, and tried again."""
    replies = {
        "/files": reply(200, listing(("a", b"x"), ("b", b"y"))),
        "/files/a": reply(200, b"", *headers, endless=bytes(2**16)),
        "/files/b": reply(200, b"y"),
    }
    async with hostile(replies) as (url, heads):
        mirror = a_mirror(tmp_path / "copy", url, retry=Retry(0.05, 0.05, give_up_after=1))
        with pytest.raises(GaveUp, match=r"'a' cannot be had, for 1 s \(Corrupt: \d+ bytes .* were 1 with"):
            await mirror.sync()
    fetches = sum(head.startswith(b"GET /files/a ") for head in heads)
    assert fetches >= 2
    assert mirror.counters.bytes <= fetches * 2**17
    assert files(tmp_path / "copy") == {"b": sha(b"y")}


@on_a_loop
async def _a_later_version(tmp_path: Path) -> None:
    replies = {
        "/files": reply(200, listing(("log", b"one line"))),
        "/files/log": reply(200, b"one line, and then another", f'ETag: "{sha(b"one line, and then another")}"'),
    }
    async with hostile(replies) as (url, _):
        await a_mirror(tmp_path / "copy", url).sync()
    assert files(tmp_path / "copy") == {"log": sha(b"one line, and then another")}


def test_a_file_that_has_grown_is_taken_as_its_head_says(tmp_path: Path) -> None:
    """A version later than announced, named by its own hash, may be as long as its Content-Length."""
    _a_later_version(tmp_path)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(200, b"{", endless=b" " * 2**16), "an answer of more than 1000000 bytes"),
        (reply(200, gzip.compress(listing()), "Content-Encoding: gzip"), r"the answer is encoded \('gzip'\)"),
        (reply(200, listing().replace(b"e-0", b"e" * 1000 + b"-0")), "not a cursor: 'eee"),
        (reply(404, b"{", endless=b" " * 2**16), "answered 404"),
    ],
    ids=["endless", "gzip", "cursor", "endless 404"],
)
def test_a_listing_is_bounded(tmp_path: Path, answer: Reply, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing without end, one that is compressed, a cursor that is no short word: each ends it in one sentence."""
    monkeypatch.setattr(fetch, "MAX_LISTING", 1_000_000)

    @on_a_loop
    async def body() -> None:
        async with hostile({"/files": answer}) as (url, _):
            with pytest.raises((BadAnswer, BadStatus), match=error):
                await a_mirror(tmp_path / "copy", url).sync()

    body()


@pytest.mark.parametrize("size", [-1, 1.5, True, "1"])
def test_a_size_is_a_whole_number_of_bytes(tmp_path: Path, size: object) -> None:
    """What could be no size is refused, or no listing at all; a whole number is one, however it is written."""

    @on_a_loop
    async def body() -> None:
        entries = [{"path": "a", "size": size, "sha256": sha(b"x")}, {"path": "b", "size": 1.0, "sha256": sha(b"y")}]
        body = json.dumps({"cursor": "e-0", "files": entries}).encode()
        async with hostile({"/files": reply(200, body), "/files/b": reply(200, b"y")}) as (url, _):
            mirror = a_mirror(tmp_path / "copy", url)
            if size == -1:
                await mirror.sync()
                assert (mirror.counters.refused, files(tmp_path / "copy")) == (1, {"b": sha(b"y")})
            else:
                with pytest.raises(BadAnswer):
                    await mirror.sync()

    body()


@pytest.mark.parametrize("redirected", ["/files", "/events", "/files/a"])
@virtual
async def test_a_redirect_takes_the_token_nowhere(net: Net, tmp_path: Path, redirected: str) -> None:
    """A redirect of listing, events or file is a refusal; the server that it names is never asked."""
    async with hostile({}) as (elsewhere, strangers):
        replies = {"/files": reply(200, listing(("a", b"x"))), "/files/a": reply(200, b"x")}
        replies[redirected] = reply(307, b"", f"Location: {elsewhere}{redirected}")
        async with hostile(replies) as (url, heads):
            mirror = a_mirror(tmp_path / "copy", url, token=TOKEN, retry=Retry(0.05, 0.05, give_up_after=0.5))
            if redirected == "/files/a":
                with pytest.raises(GaveUp, match="answered 307"):
                    await mirror.sync()
            else:
                with pytest.raises(BadStatus, match="answered 307"):
                    await following(mirror, [])
        assert heads
        assert all(f"Authorization: Bearer {TOKEN}".encode() in head for head in heads)
        assert strangers == []


# Its state


def script(copy: Copy) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A listing and updates, applied as a session does; yields the cursor and what should stand there, before each."""
    at: dict[str, bytes] = {"a": b"a1", "d/b": b"b1", "d/c": b"c1"}
    yield "e-0", at
    copy.state.expect_all({path: Version(len(data), sha(data)) for path, data in at.items()}, "e-0")
    apply(copy, at)
    steps: list[tuple[str, bytes | None]] = [
        ("a", b"a2"), ("d/b", None), ("x/b", b"b1"), ("a", None), ("a/y", b"y1"), ("d/c", b"c2"), ("a/y", None),
        ("a", b"a3"), ("d/c", None),
    ]  # fmt: skip
    for number, (path, data) in enumerate(steps, start=1):
        at = {**at, path: data} if data is not None else {other: at[other] for other in at if other != path}
        yield f"e-{number}", at
        copy.state.expect(path, None if data is None else Version(len(data), sha(data)), f"e-{number}")
        apply(copy, at)
    yield "", at


def apply(copy: Copy, at: dict[str, bytes]) -> None:
    """Do what is to be done, the bytes being at hand."""
    for path in copy.state.differing():
        if (version := copy.state.wanted[path]) is None:
            copy.remove(path)
        elif status := copy.reading.stands(path, version):
            copy.state.note(path, version, status)
        else:
            with copy.part() as part:
                part.write(at[path])
                copy.place(part, path)


def killed_everywhere(directory: Path) -> None:
    """Run the script in children that are killed at their first, second, ... file operation, and look at what is left.

    To be called in a process of its own, which has no threads.
    """
    operations = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
    for fatal in range(1, 1000):
        place = directory / f"{fatal}"
        child = os.fork()
        if child == 0:
            left = fatal

            def hook(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal left
                if event in operations:
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            for _ in script(Copy(place)):
                pass
            os._exit(0)
        _, status = os.waitpid(child, 0)
        history = dict[str | None, dict[str, bytes]]()
        with Copy(directory / f"{fatal} in peace") as copy:
            history.update(script(copy))
        with Copy(place) as copy:
            seen = {path: (place / path).read_bytes() for path in files(place)}
            if copy.state.cursor is None:  # not even the listing: nothing has been placed
                assert not seen, (fatal, seen)
            else:
                known = {data for at in history.values() for data in at.values()}
                assert set(seen.values()) <= known, (fatal, "a partial file", seen)
                at = history[copy.state.cursor]
                assert {path for path, version in copy.state.wanted.items() if version} == set(at), (
                    fatal,
                    copy.state.cursor,
                )
                apply(copy, at)
                assert files(place) == {path: sha(data) for path, data in at.items()}, (fatal, copy.state.cursor)
            assert not [name.name for name in (place / ".mirror").iterdir() if name.name.startswith(("part", "state-"))]
        if os.WIFEXITED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            print(fatal)
            return
    raise AssertionError("the script never ended")


def test_the_state_is_true_after_a_kill_at_any_file_operation(tmp_path: Path) -> None:
    """Killed before any one of its file operations, a copy opens with a cursor that fits what it wants and holds."""
    call = f"from pathlib import Path; import tests.test_mirror as t; t.killed_everywhere(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_the_state_is_true_wherever_it_was_cut_off(tmp_path: Path) -> None:
    """A journal that ends in the midst of a line means what it meant before that line, and can be written on."""
    with Copy(tmp_path / "copy") as copy:
        history = {cursor: set(at) for cursor, at in script(copy) if cursor}
    state = tmp_path / "copy/.mirror/state"
    whole = state.read_bytes()
    for length in range(whole.index(b"\n", whole.index(b"d/c")) + 1, len(whole)):
        state.write_bytes(whole[:length])
        with Copy(tmp_path / "copy") as copy:
            assert copy.state.cursor is not None
            assert {path for path, version in copy.state.wanted.items() if version} == history[copy.state.cursor]
            copy.state.expect("new", Version(0, sha(b"")), "e-99")
        with Copy(tmp_path / "copy") as copy:
            assert copy.state.cursor == "e-99"
            assert copy.state.wanted["new"] == Version(0, sha(b""))


def test_damage_to_the_state_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line that was cut off is no damage; of one that says nothing otherwise one is told what that means."""
    with Copy(tmp_path / "copy") as copy:
        copy.state.expect_all({name: Version(1, sha(b"a")) for name in "abc"}, "e-0")
    state = tmp_path / "copy/.mirror/state"
    with state.open("ab") as file:
        file.write(b'{"cursor": "e-1", "pa')
    for _ in range(2):
        Copy(tmp_path / "copy").close()
    assert not caplog.records
    state.write_bytes(state.read_bytes().replace(b'{"path": "b"', b"?????"))
    with Copy(tmp_path / "copy") as copy:
        assert copy.state.wanted.keys() == {"a", "c"}
    (line,) = caplog.messages
    assert line.startswith(f"the state in {state.parent} is damaged (lines: 1): ")


def test_the_state_does_not_grow_for_ever(tmp_path: Path) -> None:
    """The journal is written anew when most of it is superseded."""
    with Copy(tmp_path / "copy") as copy:
        copy.state.expect_all({"a": Version(1, sha(b"a"))}, "e-0")
        for number in range(1, 5000):
            copy.state.expect("a", Version(1, sha(b"a")), f"e-{number}")
    assert (tmp_path / "copy/.mirror/state").stat().st_size < 200_000
    with Copy(tmp_path / "copy") as copy:
        assert copy.state.cursor == "e-4999"


def test_a_state_that_cannot_be_written_is_written_whole_when_it_can(tmp_path: Path) -> None:
    """While the disk is full the state on it stays as it was, true; then it is all there again."""
    command = """
        import resource, pathlib
        from lab.mirror.copy import Copy
        from lab.mirror.names import Version
        copy = Copy(pathlib.Path("copy"))
        copy.state.expect_all({"a": Version(1, "0" * 64)}, "e-0")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
        for number in range(1, 10):
            copy.state.expect("b", Version(number, "0" * 64), f"e-{number}")
        assert copy.state.unsaved
        full = pathlib.Path("copy/.mirror/state").read_bytes()
        assert len(full) <= 200 and b'"e-9"' not in full
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        copy.state.expect("c", Version(1, "0" * 64), "e-10")
        assert not copy.state.unsaved
        copy.close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(command)], cwd=tmp_path, check=True, timeout=60)
    with Copy(tmp_path / "copy") as copy:
        assert copy.state.cursor == "e-10"
        assert copy.state.wanted["b"] == Version(9, "0" * 64)


# The command line


@contextlib.contextmanager
def live(directory: Path, token: str | None = None) -> Iterator[tuple[str, Callable[[], None]]]:
    """The service of a directory over real sockets: its URL, and what publishes the changes."""
    feed, tree = Feed(), Tree(directory)

    def look() -> None:
        for edit in tree.scan():
            feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)

    with serve(file_updates.create_app(feed, tree, token=token)) as server:
        yield server.url, look


@on_a_loop
async def _live_command(tmp_path: Path) -> None:
    three_files(tmp_path / "dir")
    with live(tmp_path / "dir") as (url, look):
        async with command("lab.mirror", url, tmp_path / "copy", "--once") as process:
            assert await ended(process) == (
                0,
                f"{tmp_path}/copy is complete: Counters(fetched=3, bytes=15, copied=0, deleted=0, refetched=0,"
                " refused=0, relisted=0, excluded=0)\n",
                "",
            )
        assert contents(tmp_path / "copy") == contents(tmp_path / "dir")
        for sign in (signal.SIGINT, signal.SIGTERM):
            async with command("lab.mirror", url, tmp_path / "copy") as process:
                write(tmp_path / "dir", "new/b\n", f"{sign}")
                look()
                assert process.stdout is not None
                async with asyncio.timeout(PATIENCE):
                    line = await process.stdout.readline()
                assert re.fullmatch(rb"[\d:.]{12} +[\d.]+ ms  (added|modified) +fetched +\d bytes  new/b\\n\n", line), (
                    line
                )
                async with command("lab.mirror", url, tmp_path / "copy") as second:
                    text = f"python -m lab.mirror: another mirror is at work in {tmp_path}/copy\n"
                    assert await ended(second) == (2, "", text)
                process.send_signal(sign)
                async with asyncio.timeout(10):  # 2 s are promised on a machine that has nothing else to do
                    status, out, errors = await ended(process)
                    assert (status, out) == (0, "")
                    assert re.fullmatch(r"INFO up to date: \d files, cursor \S+\n", errors)
        assert contents(tmp_path / "copy") == contents(tmp_path / "dir")


def test_the_command_mirrors_until_a_signal_or_once(tmp_path: Path) -> None:
    """`--once` ends with status 0 when the copy is complete; otherwise a line a change, until a signal; status 0."""
    _live_command(tmp_path)


def test_the_command_shows_the_token_that_a_server_asks_for(tmp_path: Path) -> None:
    """With the server's token in a file the copy becomes complete; with another, one line says so; status 2."""
    three_files(tmp_path / "dir")
    write(tmp_path, "right", f"{TOKEN}\n")
    write(tmp_path, "wrong", "a-token-of-few-characters\n")

    @on_a_loop
    async def body() -> None:
        with live(tmp_path / "dir", token=TOKEN) as (url, _):
            async with command(
                "lab.mirror", url, tmp_path / "none", "--once", "--token-file", tmp_path / "wrong"
            ) as process:
                status, out, err = await ended(process)
                assert (status, out, err.count("\n")) == (2, "", 1)
                assert "401" in err
                assert "this server wants a token" in err
            async with command(
                "lab.mirror", url, tmp_path / "copy", "--once", "--token-file", tmp_path / "right"
            ) as process:
                assert (await ended(process))[::2] == (0, "")
        assert contents(tmp_path / "copy") == contents(tmp_path / "dir")

    body()


AT_ONCE = "import lab.clients.terminal; lab.clients.terminal.WORTH_IT = 0.0"  # a bar, however soon it is over


@contextlib.contextmanager
def a_terminal() -> Iterator[tuple[int, bytearray]]:
    """A terminal of 100 columns: the end that a process writes to, and all that has been written."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    written, loop = bytearray(), asyncio.get_running_loop()
    loop.add_reader(ours, lambda: written.extend(os.read(ours, 65536)))
    try:
        yield theirs, written
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)


def test_a_terminal_shows_a_bar_and_whole_lines(tmp_path: Path) -> None:
    """A bar moves below the lines while the first listing is fetched, and is wiped away; a line never runs into it."""
    three_files(tmp_path / "dir")
    write(tmp_path / "copy", "a.txt/somebody's", "own file where a file must go")

    @on_a_loop
    async def body() -> None:
        options = (tmp_path / "copy", "--adopt", "--parallel", "1", "--longest-pause", "0.1")
        with live(tmp_path / "dir") as (url, _), Wire(url, delay=0.1) as wire, a_terminal() as (terminal, written):
            async with command("lab.mirror", wire.url, *options, preamble=AT_ONCE, output=terminal) as process:
                await until(lambda: b"WARNING 'a.txt' cannot be written (Is a directory)" in written)
                remove(tmp_path / "copy", "a.txt")
                await until(lambda: written.count(b"\n") == 5)
                process.send_signal(signal.SIGINT)
                assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
        assert all(f"fetching: {percent:3}%".encode() in written for percent in (0, 33, 67))
        lines = [line.rpartition("\r")[2] for line in written.decode().split("\r\n")]
        assert all(re.match(r"WARNING |INFO up to date|[\d:.]{12} ", line) for line in lines[:-1]), lines
        assert lines[-1] == ""

    body()


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_not_missed(tmp_path: Path, closed: str) -> None:
    """Without stdin, stdout or stderr a copy becomes complete; nothing meant for them gets into the mirror's files."""
    three_files(tmp_path / "dir")
    with live(tmp_path / "dir") as (url, look):
        for status in (0, 2):
            patience = 1 if status else 60  # s; the second time there is something that cannot be written
            call = f'exec "$0" -m lab.mirror "$@" --once --adopt --longest-pause .1 --give-up-after {patience} {closed}'
            arguments = ["sh", "-c", call, sys.executable, url, str(tmp_path / "copy")]
            done = subprocess.run(arguments, timeout=60, capture_output=True, text=True)
            assert done.returncode == status
            assert ("complete" in done.stdout) == (status == 0 and closed == "2>&-")
            assert status == 0 or done.stdout == ""
            write(tmp_path / "dir", "d", "a directory in its way")
            write(tmp_path / "copy", "d/somebody's", "own")
            look()
    assert contents(tmp_path / "copy").items() >= {"a.txt": sha(b"alpha"), "reports/q3.csv": sha(b"1;2;3")}.items()
    for line in (tmp_path / "copy/.mirror/state").read_text().splitlines():
        json.loads(line)
    assert (tmp_path / "copy/.mirror/lock").read_bytes() == b""


def test_a_pipe_shows_no_bar(tmp_path: Path) -> None:
    """Where nobody watches nothing is drawn."""
    three_files(tmp_path / "dir")

    @on_a_loop
    async def body() -> None:
        with live(tmp_path / "dir") as (url, _), Wire(url, delay=0.1) as wire:
            async with command("lab.mirror", wire.url, tmp_path / "copy", "--once", preamble=AT_ONCE) as process:
                status, out, err = await ended(process)
                assert (status, out.count("\n"), err) == (0, 1, "")

    body()


def test_a_full_disk_stops_only_what_does_not_fit(tmp_path: Path) -> None:
    """A file that the system does not let it write is named in one line, and written when it does."""
    import resource

    write(tmp_path / "dir", "large", b"x" * 1_000_000)
    write(tmp_path / "dir", "small", "small")

    @on_a_loop
    async def body() -> None:
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))"
        with live(tmp_path / "dir") as (url, look):
            async with command(
                "lab.mirror", url, tmp_path / "copy", "--longest-pause", "0.2", preamble=limit
            ) as process:
                assert process.stderr is not None
                async with asyncio.timeout(PATIENCE):
                    named = await process.stderr.readline()
                assert named == b"WARNING 'large' cannot be written (File too large): trying again\n"
                await until(lambda: (tmp_path / "copy/small").exists())
                write(tmp_path / "dir", "later", "later")
                look()
                await until(lambda: (tmp_path / "copy/later").exists())
                assert not (tmp_path / "copy/large").exists()
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                await until(lambda: files(tmp_path / "copy") == files(tmp_path / "dir"))
                process.send_signal(signal.SIGTERM)
                status, _, errors = await ended(process)
                assert status == 0
                assert re.fullmatch(r"INFO up to date: \d files, cursor \S+\n", errors)

    body()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: URL, COPY"),
        (["http://127.0.0.1:1"], "the following arguments are required: COPY"),
        (["nowhere", "{copy}"], "a server's URL is http://HOST:PORT or https://HOST, not 'nowhere'"),
        (["http://127.0.0.1:1", "{file}"], "{file}: not a directory"),
        (["http://127.0.0.1:1", "{file}/below"], "{file}/below: Not a directory"),
        (["http://127.0.0.1:1", "{full}"], "{full} is not empty, and no mirror made it (--adopt takes it over)"),
        (["http://127.0.0.1:1", "{copy}", "--parallel", "0"], "argument --parallel: a whole number from 1 to 64"),
        (["http://127.0.0.1:1", "{copy}", "--timeout", "nan"], "argument --timeout: a number above 0, not 'nan'"),
        (
            ["http://127.0.0.1:1", "{copy}", "--token-file", "{copy}/no"],
            "argument --token-file: {copy}/no: No such file or directory",
        ),
        (
            ["http://127.0.0.1:1", "{copy}", "--token-file", "{words}"],
            "argument --token-file: {words}: a token is at least 16 printable ASCII characters, without a space",
        ),
        (
            ["http://127.0.0.1:1", "{copy}", "--give-up-after", "2", "--longest-pause", "0.1"],
            "no listing from http://127.0.0.1:1/files, for 2 s (ConnectionRefusedError",
        ),
    ],
)
def test_a_mistake_is_named_in_one_line(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong, the command says it on one line of stderr and exits with status 2."""
    names = {"copy": tmp_path / "copy", "file": tmp_path / "full/file", "full": tmp_path / "full"}
    names["words"] = tmp_path / "words"
    write(tmp_path, "full/file", "x")
    write(tmp_path, "words", "two words")
    try:
        status: object = main([argument.format(**names) for argument in arguments])
    except SystemExit as refusal:
        status = refusal.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith(f"python -m lab.mirror: {sentence.format(**names)}")
    assert err.count("\n") == 1
