"""The sources of updates: the seeded schedule, and the watch of a real directory that waits for hints."""

import asyncio
import contextlib
import functools
import hashlib
import itertools
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import watchfiles
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.virtual import run_virtual
from servers import apart, file_updates, hashing, hints, sources
from servers import models as course
from servers.background import serve
from servers.feed import Batch, Feed
from servers.hashing import LARGE, File
from servers.index import Index
from servers.models import COMPOSED, MODELS
from servers.places import Place
from servers.service import Closing
from servers.sources import play, synthetic_edits, watch
from servers.tree import Edit, Tree
from tests.support import SENTENCE, until
from tests.support_feed import read_until
from tests.support_tree import LIMIT, NOBODY, State, a_directory, apply, do, in_bytes, known, state, unprivileged


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory that an unprivileged user may enter, which pytest's own are not."""
    with a_directory() as path:
        yield path


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the three ways to look was begun, in order."""
    begun: list[str] = []

    def noted(name: str) -> None:
        real = getattr(Tree, name)

        def look(tree: Tree, *arguments: object) -> object:
            begun.append(name)
            return real(tree, *arguments)

        monkeypatch.setattr(Tree, name, look)

    for name in ("scan", "look", "sweep"):
        noted(name)
    return begun


# --- the seeded schedule ---


def test_the_same_seed_gives_the_same_edits() -> None:
    """Two schedules of one seed are equal, bytes included; another seed gives another schedule."""

    def first(seed: int) -> list[Edit]:
        return list(itertools.islice(synthetic_edits(5, seed=seed, payload=64), 300))

    assert first(3) == first(3)
    assert first(3) != first(4)


@pytest.mark.parametrize("rate", [0.2, 30.0])
def test_the_edits_are_a_poisson_stream_of_the_rate(rate: float) -> None:
    """The times between edits have the mean and the variance of the exponential law, within 4 standard errors."""
    count = 5000
    times = [0.0, *(edit.at for edit in itertools.islice(synthetic_edits(rate, seed=1), count))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 0
    assert statistics.fmean(gaps) == pytest.approx(1 / rate, abs=4 / rate / count**0.5)
    assert statistics.variance(gaps) == pytest.approx(1 / rate**2, abs=4 / rate**2 * (8 / count) ** 0.5)


def test_regular_edits_are_the_same_ones_evenly_spaced() -> None:
    """The n-th regular edit comes at exactly n / rate, and is what a Poisson schedule of that seed has there."""
    regular = list(itertools.islice(synthetic_edits(8, seed=3, payload=64, regular=True), 300))
    assert [edit.at for edit in regular] == [number / 8 for number in range(1, 301)]
    poisson = itertools.islice(synthetic_edits(8, seed=3, payload=64), 300)
    assert regular == [replace(edit, at=even.at) for edit, even in zip(poisson, regular, strict=True)]


@given(seed=st.integers(), files=st.integers(1, 30), payload=st.sampled_from([0, 1, 300]))
@settings(deadline=None, max_examples=25, print_blob=True)
def test_the_edits_could_be_of_a_real_directory(seed: int, files: int, payload: int) -> None:
    """Only living files are modified or deleted, names are never used again, and there are `files` at most."""
    living: set[str] = set()
    dead: set[str] = set()
    kinds: set[str] = set()
    for edit in itertools.islice(synthetic_edits(1, seed=seed, payload=payload, files=files), 400):
        kinds.add(edit.change)
        if edit.change == "added":
            assert edit.path not in living | dead
            living.add(edit.path)
        else:
            assert edit.path in living
        if edit.change == "deleted":
            assert (edit.size, edit.sha256, edit.content) == (None, None, None)
            living.remove(edit.path)
            dead.add(edit.path)
        else:
            assert edit.size is not None
            assert edit.sha256 is not None
        assert len(living) <= files
    assert kinds == {"added", "modified", "deleted"}


def test_with_a_payload_every_file_carries_that_many_bytes() -> None:
    """Size, hash and inline content agree; without a payload nothing travels inline."""
    for edit in itertools.islice(synthetic_edits(1, payload=1000), 300):
        if edit.change != "deleted":
            assert edit.content is not None
            assert edit.size == len(edit.content) == 1000
            assert edit.sha256 == hashlib.sha256(edit.content).hexdigest()
    assert all(edit.content is None for edit in itertools.islice(synthetic_edits(1), 300))


def test_play_publishes_each_edit_at_its_planned_time() -> None:
    """In virtual time every edit is published exactly when planned, counted from the start of the play."""
    edits = list(itertools.islice(synthetic_edits(2, seed=5, payload=10), 200))

    async def main(_: object) -> list[tuple[float, str, int | None]]:
        loop = asyncio.get_running_loop()
        feed = Feed()
        closing = Closing(feed)
        await asyncio.sleep(3.7)
        start, published = loop.time(), list[tuple[float, str, int | None]]()

        async def reader() -> None:
            async for news in feed.follow(0, closing):
                assert isinstance(news, Batch)
                published.extend((loop.time() - start, update.path, update.size) for update in news.updates)

        reading = asyncio.create_task(reader())
        await play(feed, edits)
        await asyncio.sleep(1)
        closing.close()
        await reading
        return published

    published = run_virtual(main)
    assert [row[1:] for row in published] == [(edit.path, edit.size) for edit in edits]
    assert [at for at, *_ in published] == pytest.approx([edit.at for edit in edits], abs=1e-6)


def test_play_leaves_no_late_edit_out_and_lets_others_run() -> None:
    """When the loop was busy, what is overdue is published at once and in order; then the plan goes on."""

    async def body() -> None:
        feed = Feed()
        edits = [Edit(n / 1000, f"{n}", "added", 1, "00") for n in range(100)] + [Edit(0.3, "last", "deleted")]
        start = time.perf_counter()
        playing = asyncio.create_task(play(feed, edits))
        await asyncio.sleep(0)
        time.sleep(0.15)  # noqa: ASYNC251  # a busy loop is the point
        heads: set[int] = set()
        while not playing.done():
            await asyncio.sleep(0)
            heads.add(feed.head)
        assert heads >= set(range(1, 101))  # it gave way after every edit
        updates = feed.read(0).updates
        assert [update.path for update in updates] == [edit.path for edit in edits]
        for edit, update in zip(edits, updates, strict=True):
            assert update.stamp - start >= edit.at - 0.002  # the loop's clock may be a millisecond coarse

    asyncio.run(asyncio.wait_for(body(), LIMIT))


# --- the watch ---


@pytest.fixture
def hints_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sweep every minute, only hints can lead to a look: a test sees whether one was missed."""
    monkeypatch.setattr(sources, "RESCAN", 3600.0)


@contextlib.asynccontextmanager
async def watching(feed: Feed, tree: Tree) -> AsyncIterator[asyncio.Task[None]]:
    """Watch for the length of a block; the end of the watch is awaited, and its failure raised."""
    task = asyncio.create_task(watch(feed, tree))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT)
        if not task.cancelled():
            await task


async def swept(looks: list[str]) -> None:
    """Return once the first sweep of a watch is over: its last look is at what it has missed."""
    await until(lambda: "look" in looks)


async def follow_until(feed: Feed, model: State, position: int, reached: Callable[[], bool]) -> int:
    """Do to the model what the feed tells from `position` on, until it is as it should be; return the new position."""
    closing = Closing(feed)
    async with asyncio.timeout(LIMIT):
        while not reached():
            await feed.wait(position, closing)
            batch = feed.read(position)
            apply((Edit(0.0, u.path, u.change, u.size, u.sha256) for u in batch.updates), model)
            position = batch.position
    return position


def test_edits_of_another_thread_all_arrive(directory: Path, hints_only: None) -> None:
    """What another thread creates, rewrites, renames and deletes, directories too, arrives; a copy stays equal."""
    (directory / "old").mkdir()
    (directory / "old/a").write_text("a")
    feed, tree = Feed(), Tree(directory)
    model = known(tree)
    rounds: list[list[tuple[object, ...]]] = [
        [("write", Path("b"), b"one"), ("write", Path("new/deep/c"), b"two")],
        [("rename", Path("old"), Path("moved")), ("write", Path("b"), b"two")],
        [("write", Path("moved/a"), b"changed in the renamed directory"), ("write", Path("new/deep/c"), b"three")],
        [("remove", Path("new")), ("rename", Path("b"), Path("moved/b"))],
        [("write", Path("new/deep/c"), b"again"), ("write", Path("new/deep/\n<b>é"), b"")],
        [("write", Path("new/deep/c"), b"and again")],
    ]

    async def body() -> None:
        position = 0
        async with watching(feed, tree):
            for steps in rounds:
                for step in steps:
                    await asyncio.to_thread(do, directory, step)
                position = await follow_until(feed, model, position, lambda: model == state(directory))

    asyncio.run(body())
    assert feed.head >= sum(len(steps) for steps in rounds)


def test_edits_before_the_watch_begins_arrive(directory: Path, hints_only: None) -> None:
    """What changes between the first look and the start of the watch is published; what stood there is not."""
    (directory / "a").write_text("a")
    (directory / "b").write_text("b")
    feed, tree = Feed(), Tree(directory)
    (directory / "b").write_text("changed")
    (directory / "c").write_text("c")

    async def body() -> None:
        async with watching(feed, tree):
            await follow_until(feed, model, 0, lambda: model == state(directory))

    model = known(tree)
    asyncio.run(body())
    assert [(u.change, u.path) for u in feed.read(0).updates] == [("modified", "b"), ("added", "c")]


def test_a_burst_arrives_whole(directory: Path, hints_only: None) -> None:
    """Two hundred files in twenty new directories, written at once while the watch runs: none is missed."""
    feed, tree = Feed(), Tree(directory)
    model: State = {}

    def burst() -> None:
        for n in range(200):
            do(directory, ("write", Path(f"{n % 20}/{n}"), b"%d" % n))

    async def body() -> None:
        async with watching(feed, tree):
            writer = asyncio.create_task(asyncio.to_thread(burst))
            position = await follow_until(feed, model, 0, lambda: len(model) == 200)
            await writer  # the last of them may have been opened and not yet written
            await follow_until(feed, model, position, lambda: model == state(directory))

    asyncio.run(body())
    told = [*feed.read(0).updates]
    while more := feed.read(len(told)).updates:  # one answer is bounded
        told += more
    assert sorted(u.path for u in told if u.change == "added") == sorted(model)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "servers"]


def test_a_directory_that_vanishes_is_waited_for(
    directory: Path, hints_only: None, looks: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """While it is away, nothing is published and one line says so; back again, it is watched as before."""
    (directory / "a").write_text("a")
    (directory / "b").write_text("b")
    feed, tree = Feed(), Tree(directory)
    model = known(tree)
    away = directory.with_name("away")

    async def body() -> None:
        async with watching(feed, tree):
            await asyncio.to_thread(directory.rename, away)
            await until(lambda: warnings(caplog))
            assert feed.delayed == warnings(caplog)[0]
            with pytest.raises(BlockingIOError, match="the directory is not there"):
                tree.open("a")
            looked = len(looks)
            await until(lambda: len(looks) >= looked + 2)
            (away / "b").unlink()
            await asyncio.to_thread(away.rename, directory)
            position = await follow_until(feed, model, 0, lambda: model == state(directory))
            assert feed.delayed is None
            assert [(u.change, u.path) for u in feed.read(0).updates] == [("deleted", "b")]
            (directory / "a").write_text("changed")
            await follow_until(feed, model, position, lambda: model == state(directory))

    asyncio.run(body())
    assert warnings(caplog) == [f"{directory} cannot be read (No such file or directory): waiting for it"]


def test_a_link_to_another_release_is_followed(directory: Path, hints_only: None) -> None:
    """`ln -sfn releases/2 current`, and back: what the link leads to now is announced soon, and watched."""
    releases = [directory / "1", directory / "2"]
    for release in releases:
        release.mkdir()
        for name in ("a", release.name):
            (release / name).write_text(release.name)
    current, new = directory / "current", directory / "new"
    current.symlink_to(releases[0])
    feed, tree = Feed(), Tree(current)
    model = known(tree)

    async def body() -> None:
        position = 0
        async with watching(feed, tree):
            for release in (releases[1], releases[0], releases[1]):
                new.symlink_to(release)
                new.rename(current)
                position = await follow_until(feed, model, position, lambda: model == state(current.resolve()))
            (current / "a").write_text("edited")
            position = await follow_until(feed, model, position, lambda: model == state(current.resolve()))
            assert feed.delayed is None

    asyncio.run(body())


def test_a_directory_that_is_closed_for_a_while_is_waited_for(
    directory: Path, hints_only: None, looks: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Without permission to list the watched directory nothing is published; one line says so, and it goes on after."""
    (directory / "a").write_text("a")
    feed, tree = Feed(), Tree(directory)
    model = known(tree)
    if os.geteuid() == 0:
        os.chown(directory, NOBODY, NOBODY)

    def closed() -> list[str]:  # a look that was half-way through names the file it could not open any more, too
        return [line for line in warnings(caplog) if line != "left out 'a': Permission denied"]

    async def body() -> None:
        async with watching(feed, tree):
            await swept(looks)
            await asyncio.to_thread(directory.chmod, 0)
            await until(closed)
            looked = len(looks)
            await until(lambda: len(looks) >= looked + 2)
            await asyncio.to_thread(directory.chmod, 0o755)
            (directory / "b").write_text("b")
            position = await follow_until(feed, model, 0, lambda: model == state(directory))
            (directory / "b").write_text("changed")
            await follow_until(feed, model, position, lambda: model == state(directory))

    with unprivileged():
        asyncio.run(body())
    assert closed() == [f"{directory} cannot be read (Permission denied): waiting for it"]


@pytest.mark.parametrize("name", [".", "sub"])
def test_a_directory_replaced_by_another_of_its_name_is_watched_on(
    name: str, directory: Path, hints_only: None
) -> None:
    """A directory swapped so fast that no scan misses the old one: the new one is watched from then on."""
    place = directory / name
    place.mkdir(exist_ok=True)
    (place / "a").write_text("a")
    feed, tree = Feed(), Tree(directory)
    model = known(tree)

    async def body() -> None:
        position = 0
        async with watching(feed, tree):
            for n in range(3):
                new, old = directory.parent / f"new {n}", directory.parent / f"old {n}"
                new.mkdir()
                (new / "a").write_text(f"of another directory, {n}")
                place.rename(old)
                new.rename(place)
                position = await follow_until(feed, model, position, lambda: model == state(directory))
                for change in range(2):
                    (place / "a").write_text(f"changed: {n}, {change}")
                    position = await follow_until(feed, model, position, lambda: model == state(directory))

    asyncio.run(body())


def test_a_directory_that_went_with_its_parent_is_listened_to_anew(
    directory: Path, hints_only: None, looks: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The system says nothing of a parent that moves; once the absence was seen, what comes in its place is watched."""
    place, away = directory / "sub", directory.with_name("away")
    place.mkdir()
    feed, tree = Feed(), Tree(place)
    model: State = {}

    async def body() -> None:
        async with watching(feed, tree):
            await swept(looks)
            await asyncio.to_thread(directory.rename, away)
            (away / "sub/hint").touch()
            await until(lambda: warnings(caplog))
            await asyncio.to_thread(place.mkdir, parents=True)
            position = 0
            for content in ("one", "two", "three"):
                (place / "a").write_text(content)
                position = await follow_until(feed, model, position, lambda: model == state(place))

    asyncio.run(body())
    assert len(warnings(caplog)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a name is Unicode")
@pytest.mark.parametrize("model", [each.slug for each in (*MODELS, *COMPOSED) if each.path])
def test_a_name_that_is_not_utf8_does_not_end_the_watch(model: str, directory: Path, hints_only: None) -> None:
    """Whatever happens to such a name while it is watched, every client is told of what comes after it."""
    bad, other, sub = (in_bytes(directory, name) for name in (b"caf\xe9", b"caf\xe8", b"d\xe9"))
    script: list[Callable[[], object]] = [
        lambda: Path(bad).write_text("new"),
        lambda: Path(bad).write_text("changed"),
        lambda: Path(bad).rename(other),
        lambda: Path(sub).mkdir(),
        lambda: Path(sub, "within").write_text("new"),
        lambda: Path(other).unlink(),
        lambda: shutil.rmtree(sub),
    ]
    feed = Feed(epoch="e0e0")
    application = course.model(model).create_app(feed, source=lambda: watch(feed, Tree(directory)))
    reader = "sse" if model == "file-updates" else model
    with serve(application) as server:
        (directory / "first").touch()
        _, cursor = asyncio.run(read_until(reader, server.url, "0", bool))
        for number, step in enumerate(script):
            step()
            (directory / f"after {number}").touch()
            (told,), cursor = asyncio.run(read_until(reader, server.url, cursor, bool))
            assert (told["path"], told["change"]) == (f"after {number}", "added")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a name is Unicode")
def test_a_directory_whose_path_is_not_utf8_is_watched_as_any(
    directory: Path, hints_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Directories are watched by what they are, so that their names do not matter."""
    place = Path(in_bytes(directory, b"caf\xe9"))
    place.mkdir()
    asyncio.run(told_of_three(place))
    assert warnings(caplog) == []


async def told_of_three(directory: Path) -> None:
    """Watch the directory, write a file into each of three new ones, and see each announced."""
    feed, position, model = Feed(), 0, State()
    async with watching(feed, Tree(directory)):
        for number in range(3):  # each is listened to anew, for the directories are others
            (directory / f"{number}").mkdir()
            (directory / f"{number}/a").write_text("new")
            position = await follow_until(feed, model, position, lambda: model == state(directory))


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hears the system where there is no inotify."""
    monkeypatch.setattr(sources, "hints_of", lambda tree: hints.Watchfiles(os.path.realpath(tree.directory)))


def test_where_there_is_no_inotify_watchfiles_hears_the_system(
    directory: Path, portable: None, hints_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Files in new directories are announced by its hints alone."""
    asyncio.run(told_of_three(directory))
    assert warnings(caplog) == []


def test_whatever_fails_while_listening_does_not_end_the_watch(
    directory: Path, portable: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw leaves a watch that looks twice a second, and one line that says why."""

    def fails(*names: str, **options: object) -> Iterator[object]:
        yield set()
        raise LookupError("it broke")

    monkeypatch.setattr(watchfiles, "watch", fails)
    asyncio.run(told_of_three(directory))
    (line,) = warnings(caplog)
    assert line.startswith("no hints from the system (it broke): looking every 0.")


LIMITS = {"max_user_watches": ("max_inotify_watches", 3), "max_user_instances": ("max_inotify_instances", 0)}


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("limit", LIMITS)
def test_at_the_end_of_inotifys_means_one_line_says_what_to_raise(limit: str, directory: Path) -> None:
    """With the system's real limit reached, that is named, and what is not watched is looked at by the clock."""
    for name in "abcdef":
        (directory / name).mkdir()
    command = [sys.executable, "-m", "servers", "sse", "--watch", str(directory), "--port", "0"]
    own, most = LIMITS[limit]  # those of a user namespace, which can be lowered for one server alone
    lower = f"echo {most} >/proc/sys/user/{own}"
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*inside, lower], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace of one's own to be had")
    inside += [f'{lower} && exec "$@"', "sh", *command]
    with subprocess.Popen(inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            assert server.stderr
            found = SENTENCE.match(server.stdout.readline())
            assert found
            asyncio.run(until(lambda: httpx.get(f"{found[2]}/healthz", trust_env=False).status_code == 200))
            (directory / "f/late").touch()
            (first,), _ = asyncio.run(read_until("sse", found[2], "0", bool))
            assert first["path"] == "f/late"
        finally:
            server.terminate()
        said = server.stderr.read().splitlines()
    assert len(said) == 1, said
    assert f"raise fs.inotify.{limit}, now " in said[0]


def test_a_quiet_directory_is_left_alone(directory: Path, hints_only: None, looks: list[str]) -> None:
    """After the first sweep there is a look at what a hint names, and no other sweep."""
    feed, tree = Feed(), Tree(directory)

    async def body() -> None:
        async with watching(feed, tree):
            await swept(looks)
            (directory / "a").write_text("a")
            await follow_until(feed, {}, 0, lambda: feed.head > 0)
            await until(lambda: tree.files["a"].settled)  # until then it is looked at again
            looked = len(looks)
            await asyncio.sleep(0.3)
            assert len(looks) - looked <= 1
            assert looks.count("sweep") == 1

    asyncio.run(body())


def test_links_out_of_the_directory_are_not_watched(directory: Path) -> None:
    """The system is asked to watch the real directories of the tree, one by one, and nothing that a link leads to."""
    descriptors = Path("/proc/self/fdinfo")
    if not descriptors.exists():
        pytest.skip("only Linux lists a process's watches")

    def watched() -> int:
        texts = []
        for descriptor in descriptors.iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                texts.append(descriptor.read_text())
        return sum(text.count("inotify wd:") for text in texts)

    outside = directory.parent / "outside"
    (outside / "large").mkdir(parents=True)
    (directory / "sub").mkdir()
    (directory / "link").symlink_to(outside)
    feed, tree = Feed(), Tree(directory)

    async def body() -> None:
        before = watched()
        async with watching(feed, tree), asyncio.timeout(LIMIT):
            (directory / "sub/a").write_text("a")
            await feed.wait(0, Closing(feed))
            await until(lambda: watched() - before == 2)
            (directory / "sub/new").mkdir()
            await until(lambda: watched() - before == 3)
        await until(lambda: watched() == before)

    asyncio.run(body())


def test_a_watch_outlives_a_want_of_descriptors(
    directory: Path, hints_only: None, looks: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """While a process has none left, one line says so; what has changed is announced when there are some again."""
    feed, tree = Feed(), Tree(directory)
    model: State = {}

    async def body() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken: list[int] = []
        async with watching(feed, tree):
            await swept(looks)
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
            try:
                file = (directory / "a").open("w")
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(os.dup(0))
                with file:
                    file.write("one")
                await until(lambda: warnings(caplog))
            finally:
                for descriptor in taken:
                    os.close(descriptor)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await follow_until(feed, model, 0, lambda: model == state(directory))

    asyncio.run(body())
    assert len(warnings(caplog)) == 1
    assert "Too many open files" in warnings(caplog)[0]


def test_what_is_left_out_is_counted_and_named_once(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each unreadable file and each name that is not UTF-8 is one log line and one in `skipped`, however many scans."""
    (directory / "<b>\nforged: line").write_text("private")
    (directory / "<b>\nforged: line").chmod(0)
    (directory / "closed").mkdir(mode=0)
    with open(os.fsencode(directory) + b"/caf\xe9", "wb") as file:  # noqa: PTH123  # a Path cannot hold these bytes plainly
        file.write(b"one")
    feed = Feed()
    model: State = {}
    if os.geteuid() == 0:
        os.chown(directory, NOBODY, NOBODY)

    def has_size(size: int) -> bool:
        return "a" in model and model["a"][0] == size

    async def body() -> None:
        tree = Tree(directory)
        position = 0
        async with watching(feed, tree):
            for n in range(1, 4):
                (directory / "a").write_text("a" * n)
                position = await follow_until(feed, model, position, functools.partial(has_size, n))

    with unprivileged(), caplog.at_level(logging.WARNING):
        asyncio.run(body())
    (directory / "closed").chmod(0o755)
    assert feed.skipped == 3
    assert sorted(caplog.messages) == [
        r"left out '<b>\nforged: line': Permission denied",
        r"left out 'caf\xe9': its name is not UTF-8",
        r"left out 'closed/': Permission denied",
    ]


def test_a_cancelled_watch_ends_at_once_and_leaves_no_thread(directory: Path) -> None:
    """Cancelling ends the watch, its hint thread and even the hashing of a huge file, within the loop's own end."""
    threads = set(threading.enumerate())
    feed, tree = Feed(), Tree(directory)
    with (directory / "huge").open("wb") as file:
        file.truncate(32 * 2**30)  # takes no space, but a quarter of a minute and more to hash
    hashing = threading.Event()

    async def body() -> float:
        async with asyncio.timeout(LIMIT):
            async with watching(feed, tree):
                await asyncio.to_thread(hashing.wait, LIMIT)
                return time.monotonic()

    real = Tree.hashing

    def noted(tree: Tree, name: str) -> Iterator[File | None]:
        hashing.set()
        return real(tree, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tree, "hashing", noted)
        began = asyncio.run(body())  # waits for the threads of the loop
    assert time.monotonic() - began < 10
    deadline = time.monotonic() + LIMIT
    while set(threading.enumerate()) - threads:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
    assert feed.head == 0


def test_a_tree_can_be_watched_again(directory: Path, hints_only: None) -> None:
    """After one watch was ended another on the same tree tells what happened in between, and goes on."""
    feed, tree = Feed(), Tree(directory)
    model: State = {}

    async def body() -> None:
        async with watching(feed, tree):
            await follow_until(feed, model, feed.head, lambda: model == state(directory))

    for n in range(3):
        (directory / f"{n}").write_text("in between")
        asyncio.run(body())
    assert [update.path for update in feed.read(0).updates] == ["0", "1", "2"]


def test_a_directory_renamed_before_its_last_hint_is_looked_at_is_never_missing(
    directory: Path, looks: list[str], hints_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is written, and its directory renamed at once: its new names are announced before the old ones go."""
    monkeypatch.setattr(sources, "GATHER", 1.0)
    monkeypatch.setattr(hints, "GATHER", 0.1)  # between the two halves of a rename, on a busy machine
    (directory / "old").mkdir()
    for name in "abc":
        (directory / "old" / name).write_text(name)
    feed, tree, real = Feed(), Tree(directory), Tree.look
    model = known(tree)

    def look(tree: Tree, names: list[str], *rest: list[str]) -> list[Edit]:
        if "old/a" in names and (directory / "old").exists():
            (directory / "old").rename(directory / "new")
        return real(tree, names, *rest)

    async def body() -> None:
        async with watching(feed, tree):
            await swept(looks)
            (directory / "old/a").write_text("changed")
            await follow_until(feed, model, 0, lambda: "new/a" in model and model == state(directory))

    monkeypatch.setattr(Tree, "look", look)
    asyncio.run(body())
    changes = [(update.change, update.path) for update in feed.read(0).updates]
    assert changes == [*(("added", f"new/{name}") for name in "abc"), *(("deleted", f"old/{name}") for name in "abc")]


def test_a_rename_is_told_in_one_piece(
    directory: Path, looks: list[str], hints_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who removes a file as soon as its new name is heard is told so last: the old name has been told to be gone."""
    monkeypatch.setattr(sources, "GATHER", 1.0)
    monkeypatch.setattr(hints, "GATHER", 0.1)  # between the two halves of a rename, on a busy machine
    (directory / "old").write_text("words")
    feed, tree = Feed(), Tree(directory)

    async def body() -> None:
        async with watching(feed, tree):
            await swept(looks)
            (directory / "old").rename(directory / "new")
            await until(lambda: feed.head)
            (directory / "new").unlink()
            await until(lambda: feed.head >= 3)

    asyncio.run(body())
    changes = [(update.change, update.path) for update in feed.read(0).updates]
    assert changes == [("added", "new"), ("deleted", "old"), ("deleted", "new")]


def test_a_huge_file_keeps_no_other_waiting(directory: Path, hints_only: None) -> None:
    """While a file that takes a quarter of a minute is hashed, small and other large ones are announced."""
    feed, tree = Feed(), Tree(directory)
    model: State = {}

    async def body() -> None:
        position = 0
        async with watching(feed, tree):
            with (directory / "huge").open("wb") as file:
                file.truncate(32 * 2**30)  # takes no space
            await until(lambda: tree.read_bytes > LARGE)  # it is being hashed
            for name, size in (("small", 10), ("large", 3 * LARGE)):
                (directory / name).write_bytes(bytes(size))
                position = await follow_until(feed, model, position, functools.partial(model.__contains__, name))

    asyncio.run(body())
    assert model.keys() == {"small", "large"}


def test_a_file_that_grows_is_announced_as_it_was_at_a_bounded_pace(directory: Path, hints_only: None) -> None:
    """Each announcement is an exact state of the file, however often a line comes; in the end it is all of it."""
    log = directory / "log"
    content = bytearray(os.urandom(2 * LARGE))
    log.write_bytes(content)
    feed, tree = Feed(), Tree(directory)

    async def body() -> float:
        async with watching(feed, tree):
            began = time.monotonic()
            with log.open("ab", buffering=0) as file:
                for number in range(200):
                    line = b"line %d\n" % number
                    file.write(line)
                    content.extend(line)
                    await asyncio.sleep(0.005)
            took = time.monotonic() - began
            await until(lambda: tree.files["log"].size == len(content))
            await until(lambda: tree.files["log"].settled)
            return took

    took = asyncio.run(body())
    updates = feed.read(0).updates
    assert {(update.path, update.change) for update in updates} == {("log", "modified")}
    for update in updates:
        assert update.sha256 == hashlib.sha256(content[: update.size]).hexdigest()
    assert len(updates) <= took / apart.PACE + 2


def test_a_change_in_the_middle_of_a_log_is_found_while_it_grows(
    directory: Path, hints_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a file that grows is read beside what has come: a change elsewhere in it is announced without an end."""
    monkeypatch.setattr(hashing, "VERIFY", 0)
    log, middle = directory / "log", LARGE + 10
    log.write_bytes(bytes(2 * LARGE))
    feed, tree = Feed(), Tree(directory)

    async def body() -> None:
        async with watching(feed, tree):
            with log.open("r+b", buffering=0) as file:
                file.seek(middle)
                file.write(b"changed")
                file.seek(0, os.SEEK_END)
                async with asyncio.timeout(LIMIT):
                    while True:
                        file.write(b"a line\n")
                        known = tree.files["log"]
                        if known.sha256 == hashlib.sha256(log.read_bytes()[: known.size]).hexdigest() != first:
                            return
                        await asyncio.sleep(0.05)

    first = tree.files["log"].sha256
    asyncio.run(body())


def test_a_directory_whose_place_an_empty_one_takes_is_waited_for(
    directory: Path, hints_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a disk is not mounted: nothing is published, one line says so, and all goes on when it is back."""
    for number in range(20):
        (directory / f"{number}").write_text("a")
    feed, tree = Feed(), Tree(directory)
    model = known(tree)
    away, empty = directory.with_name("away"), directory.with_name("empty")

    def swap(place: Path, old: Path, new: Path) -> None:
        place.rename(old)
        new.rename(place)

    async def body() -> None:
        async with watching(feed, tree):
            (directory / "1").write_text("changed")
            position = await follow_until(feed, model, 0, lambda: model == state(directory))
            empty.mkdir()
            await asyncio.to_thread(swap, directory, away, empty)
            await until(lambda: [line for line in warnings(caplog) if "nothing is published" in line])
            (directory / "stray").write_text("not of this directory")
            await asyncio.sleep(2 * sources.PAUSE)
            assert feed.head == position
            await asyncio.to_thread(swap, directory, empty, away)
            (directory / "2").write_text("changed")
            position = await follow_until(feed, model, position, lambda: model == state(directory))
            (directory / "3").write_text("watched as before")
            await follow_until(feed, model, position, lambda: model == state(directory))

    asyncio.run(body())
    assert not any(update.change == "deleted" for update in feed.read(0).updates)


def test_lost_hints_lead_to_a_sweep(directory: Path, hints_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """When more comes than can be kept, everything is looked at: nothing is missed, new directories are watched."""
    monkeypatch.setattr(hints, "MOST", 3)
    feed, tree = Feed(), Tree(directory)
    model: State = {}

    async def body() -> None:
        position = 0
        async with watching(feed, tree):
            for turn in range(3):
                for number in range(60):
                    do(directory, ("write", Path(f"{number % 6}/{number}"), b"%d" % turn))
                position = await follow_until(feed, model, position, lambda: model == state(directory))

    asyncio.run(body())


def test_while_the_first_look_is_under_way_the_server_says_how_far_it_is(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The port is open, `/healthz` and the listing are 503, and a line tells the terminal; then all of it is there."""
    monkeypatch.setattr(sources, "SAY", 0.05)
    for number in range(3):
        (directory / f"{number}").write_text("a")
    go_on = threading.Event()
    real = Place.open
    monkeypatch.setattr(Place, "open", lambda place, name: (go_on.wait(LIMIT), real(place, name))[1])
    feed, tree = Feed(), Tree(directory, first_look=False)
    index = Index(tmp_path / "state", directory)
    app = file_updates.create_app(feed, tree, source=lambda: watch(feed, tree, index))
    with serve(app, quiet=False) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        begun = f"starting: first look at {directory}: 1 files"
        asyncio.run(until(lambda: begun in client.get("/healthz").json()["status"]))
        assert client.get("/healthz").status_code == 503
        for path in ("/files", "/files/0"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
        asyncio.run(until(lambda: any("first look at" in line for line in warnings(caplog))))
        go_on.set()
        asyncio.run(until(lambda: client.get("/healthz").status_code == 200))
        assert [file["path"] for file in client.get("/files").json()["files"]] == ["0", "1", "2"]
        assert feed.head == 0
    assert index.load().keys() <= {"0", "1", "2"}


def test_while_the_directory_is_away_its_files_are_not_gone(directory: Path, hints_only: None) -> None:
    """Nobody hears of a 404: health, files and bundles are 503 and say what is waited for; the listing stays."""
    (directory / "a").write_text("a")
    away, wanted = directory.with_name("away"), {"paths": ["a"]}
    feed, tree = Feed(), Tree(directory)
    app = file_updates.create_app(feed, tree, source=lambda: watch(feed, tree))
    with serve(app) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/files/a").text == "a"
        directory.rename(away)
        assert client.get("/files/a").status_code == 503, "at once, before the watch has seen it"
        asyncio.run(until(lambda: client.get("/healthz").status_code == 503))
        waiting = f"{directory} cannot be read (No such file or directory): waiting for it"
        assert client.get("/healthz").json()["status"] == waiting
        for answer in (client.get("/files/a"), client.post("/bundle", json=wanted)):
            assert (answer.status_code, answer.json()["detail"]) == (503, waiting)
            assert answer.headers["Retry-After"]
        assert [file["path"] for file in client.get("/files").json()["files"]] == ["a"]
        assert client.get("/files/b").status_code == 503
        away.rename(directory)
        asyncio.run(until(lambda: client.get("/healthz").status_code == 200))
        assert client.get("/files/a").text == "a"
        assert client.get("/files/b").status_code == 404
        assert feed.head == 0


def test_a_start_on_a_directory_that_has_lost_everything_waits_for_it(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the index remembers tells an empty directory from one whose disk is not mounted yet: it is no listing."""
    remembered = {"a": File(1, "00", (1, 2, 1, 3, 4), settled=True)}

    async def body() -> None:
        feed, tree = Feed(), Tree(directory, first_look=False, remembered=remembered)
        async with watching(feed, tree):
            await until(lambda: feed.starting and "is empty: waiting" in feed.starting())
            await until(lambda: warnings(caplog))
            directory.with_name("a").write_text("a")
            directory.with_name("a").rename(directory / "a")  # whole: it is looked at once
            await until(lambda: feed.starting is None)
            assert feed.listing() == (0, {path: file.known for path, file in tree.files.items()})

    asyncio.run(body())
    (line,) = warnings(caplog)
    assert "it is empty, and had 1 files: is it mounted?; nothing is published" in line


def test_what_a_watcher_runs_into_while_it_is_stopped_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watcher that fails after it was told to stop says so: the failure is not left behind in a future."""

    started = threading.Event()

    def fails_late(watcher: sources.Watcher) -> None:
        started.set()
        while not watcher.tree.abandoned:
            time.sleep(0.01)
        raise ValueError("too late")

    async def stopped() -> None:
        watched = asyncio.create_task(watch(Feed(), Tree(tmp_path)))
        await until(started.is_set)
        watched.cancel()
        await watched

    monkeypatch.setattr(sources.Watcher, "run", fails_late)
    with pytest.raises(ValueError, match="too late"):
        asyncio.run(asyncio.wait_for(stopped(), 30))
