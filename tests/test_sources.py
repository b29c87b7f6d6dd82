"""The sources of updates: the seeded schedule, the scan of a real directory, and the watch that waits for hints."""

import asyncio
import contextlib
import functools
import hashlib
import itertools
import logging
import os
import resource
import shutil
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import watchfiles
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.virtual import run_virtual
from servers import models as course
from servers import sources
from servers import tree as scanning
from servers.background import serve
from servers.feed import Batch, Feed
from servers.models import COMPOSED, MODELS
from servers.service import Closing
from servers.sources import play, synthetic_edits, watch
from servers.tree import Abandoned, Edit, File, Tree
from tests.support import until
from tests.support_feed import read_until

LIMIT = 30.0  # seconds until a wait in these tests is given up
NOBODY = 65534

State = dict[str, tuple[int | None, str | None]]  # path -> size, sha256


def state(directory: Path) -> State:
    """What stands in a directory, found without the code under test."""
    found: State = {}
    for folder, _, names in os.walk(directory):
        for path in (Path(folder, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                content = path.read_bytes()
                found[path.relative_to(directory).as_posix()] = len(content), hashlib.sha256(content).hexdigest()
    return found


def apply(edits: Iterable[Edit], model: State) -> None:
    """Do the edits to a model of the directory. Each must fit: added is new, modified differs, deleted was there."""
    for edit in edits:
        if edit.change == "deleted":
            assert (edit.size, edit.sha256) == (None, None)
            del model[edit.path]
        else:
            assert (edit.path in model) == (edit.change == "modified")
            assert model.get(edit.path) != (edit.size, edit.sha256)
            model[edit.path] = edit.size, edit.sha256


def told(edits: Iterable[Edit]) -> list[tuple[str, str]]:
    return [(edit.change, edit.path) for edit in edits]


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory that an unprivileged user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve() / "watched"
        path.parent.chmod(0o755)
        path.mkdir()
        yield path


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Act as a user whom permissions bind; root, who runs the tests in a container, may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def settling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust a file's stat soon after it was changed, so that a test need not wait."""
    monkeypatch.setattr(scanning, "FRESH", 50_000_000)


def settle(tree: Tree) -> None:
    """Scan until no file would be read again."""
    deadline = time.monotonic() + LIMIT
    while not all(file.settled for file in tree.files.values()):
        assert time.monotonic() < deadline
        assert tree.scan() == []


def before_reading(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[Path], None]) -> None:
    """Have something happen to the directory between the listing and the reading of each file."""
    look = Tree._look

    def meddled(tree: Tree, path: str) -> File:
        meddle(Path(path))
        return look(tree, path)

    monkeypatch.setattr(Tree, "_look", meddled)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each scan began."""
    times: list[float] = []
    scan = Tree.scan

    def timed(tree: Tree) -> list[Edit]:
        times.append(time.monotonic())
        return scan(tree)

    monkeypatch.setattr(Tree, "scan", timed)
    return times


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


# --- the scan ---


def test_what_stands_there_at_the_first_look_is_no_edit(directory: Path) -> None:
    """A new Tree knows the files with size and hash, and the next scan tells nothing."""
    (directory / "sub").mkdir()
    (directory / "sub/a").write_bytes(b"one")
    tree = Tree(directory)
    assert {path: (file.size, file.sha256) for path, file in tree.files.items()} == state(directory)
    assert tree.scan() == []
    assert tree.directories.keys() == {str(directory), str(directory / "sub")}


def test_create_modify_rename_and_delete(directory: Path) -> None:
    """Each edit of a file is told with its path, size and hash; a rename is a deletion and an addition."""
    tree = Tree(directory)
    file = directory / "a.csv"
    file.write_bytes(b"one")
    assert tree.scan() == [Edit(0.0, "a.csv", "added", 3, hashlib.sha256(b"one").hexdigest())]
    file.write_bytes(b"three")
    assert tree.scan() == [Edit(0.0, "a.csv", "modified", 5, hashlib.sha256(b"three").hexdigest())]
    file.rename(directory / "b.csv")
    assert told(tree.scan()) == [("deleted", "a.csv"), ("added", "b.csv")]
    (directory / "b.csv").unlink()
    assert tree.scan() == [Edit(0.0, "b.csv", "deleted")]
    assert tree.scan() == []


def test_a_file_that_replaces_another_is_modified(directory: Path) -> None:
    """The way editors save, by writing a new file and renaming it over the old one, is one modification."""
    (directory / "a").write_bytes(b"old")
    tree = Tree(directory)
    (directory / "a.tmp").write_bytes(b"new")
    (directory / "a.tmp").rename(directory / "a")
    assert told(tree.scan()) == [("modified", "a")]


def test_an_empty_file_counts(directory: Path) -> None:
    """A file of no bytes is added with size 0 and the hash of nothing; emptying a file modifies it."""
    tree = Tree(directory)
    (directory / "a").touch()
    (directory / "b").write_bytes(b"full")
    assert [(edit.path, edit.size) for edit in tree.scan()] == [("a", 0), ("b", 4)]
    (directory / "b").write_bytes(b"")
    assert tree.scan() == [Edit(0.0, "b", "modified", 0, hashlib.sha256(b"").hexdigest())]


def test_rewrites_within_one_tick_of_the_clock_are_all_seen(directory: Path) -> None:
    """Two hundred rewrites of the same size, as fast as they go, with a scan after each: every one is told."""
    file = directory / "a"
    file.write_bytes(b"xxx")
    tree = Tree(directory)
    for n in range(200):
        file.write_bytes(b"%03d" % n)
        assert [edit.sha256 for edit in tree.scan()] == [hashlib.sha256(b"%03d" % n).hexdigest()]


def test_a_rewrite_that_hides_behind_the_old_time_stamp_is_seen(directory: Path, settling_at_once: None) -> None:
    """The same size and a modification time set back do not deceive: the inode's own time cannot be set back."""
    file = directory / "a"
    file.write_bytes(b"one")
    tree = Tree(directory)
    settle(tree)
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert told(tree.scan()) == [("modified", "a")]


def test_a_touched_file_has_not_changed(directory: Path, settling_at_once: None) -> None:
    """A file with a new modification time but the same bytes is no edit, settled or not."""
    file = directory / "a"
    file.write_bytes(b"one")
    tree = Tree(directory)
    for _ in range(2):
        os.utime(file, (1, 1))
        assert tree.scan() == []
        os.utime(file)
        assert tree.scan() == []
        file.write_bytes(b"one")
        assert tree.scan() == []
        settle(tree)


def test_a_settled_file_is_not_read_again(
    directory: Path, settling_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its stat can be trusted, a file's bytes are left alone until the stat differs."""
    (directory / "a").write_bytes(b"one")
    (directory / "b").write_bytes(b"two")
    tree = Tree(directory)
    settle(tree)
    read: list[str] = []
    before_reading(monkeypatch, lambda path: read.append(path.name))
    assert tree.scan() == []
    assert read == []
    os.utime(directory / "b")
    assert tree.scan() == []
    assert read == ["b"]


def test_a_file_just_written_is_read_again(directory: Path) -> None:
    """Within two seconds of a change the same stat may hide another one: the file is not settled yet."""
    (directory / "a").write_bytes(b"one")
    assert not Tree(directory).files["a"].settled


def test_a_renamed_directory_takes_its_files_along(directory: Path) -> None:
    """All files below are deleted under the old name and added under the new, deletions first, in order of paths."""
    (directory / "old/deep").mkdir(parents=True)
    for name in ("old/b", "old/a", "old/deep/c", "z"):
        (directory / name).write_text(name)
    tree = Tree(directory)
    (directory / "old").rename(directory / "new")
    assert told(tree.scan()) == [
        ("deleted", "old/a"),
        ("deleted", "old/b"),
        ("deleted", "old/deep/c"),
        ("added", "new/a"),
        ("added", "new/b"),
        ("added", "new/deep/c"),
    ]


def test_a_file_becomes_a_directory_and_a_file_again(directory: Path) -> None:
    """The name of a file can be the name of a directory later: the file goes before what is below it comes."""
    (directory / "a").write_text("a file")
    tree = Tree(directory)
    (directory / "a").unlink()
    (directory / "a").mkdir()
    (directory / "a/b").write_text("below")
    assert told(tree.scan()) == [("deleted", "a"), ("added", "a/b")]
    shutil.rmtree(directory / "a")
    (directory / "a").write_text("a file again")
    assert told(tree.scan()) == [("deleted", "a/b"), ("added", "a")]


NAMES = ["ü.txt", "e\u0301", "日本語", "a\nb", "<script>alert(1)", " ", "'\"\\", "-rf", "…", "\u2028", "\x7f"]


def test_any_utf8_name_is_a_path_that_a_feed_accepts(directory: Path) -> None:
    """Names with accents, line ends, markup, quotes or blanks are told as they are, and can be published."""
    tree = Tree(directory)
    for name in NAMES:
        (directory / name).mkdir()
        (directory / name / name).write_text(name)
    edits = tree.scan()
    assert [edit.path for edit in edits] == sorted(f"{name}/{name}" for name in NAMES)
    feed = Feed()
    for edit in edits:
        feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)
    assert tree.skipped == {}


def test_a_name_that_is_not_utf8_is_left_out(directory: Path) -> None:
    """Such a file, or one in such a directory, is skipped under its bytes; the others are not disturbed."""
    (directory / "good").write_text("good")
    bad = os.fsencode(directory) + b"/caf\xe9"
    with open(bad + b".txt", "wb") as file:  # noqa: PTH123  # a Path cannot hold these bytes plainly
        file.write(b"one")
    os.mkdir(bad)  # noqa: PTH102
    with open(bad + b"/b\nc", "wb") as file:  # noqa: PTH123
        file.write(b"two")
    tree = Tree(directory)
    assert list(tree.files) == ["good"]
    reason = "its name is not UTF-8"
    assert tree.skipped == {r"'caf\xe9.txt'": reason, r"'caf\xe9/b\nc'": reason}
    os.rename(bad + b".txt", bytes(directory) + b"/cafe.txt")  # noqa: PTH104
    assert told(tree.scan()) == [("added", "cafe.txt")]
    assert list(tree.skipped) == [r"'caf\xe9/b\nc'"]


def test_symbolic_links_are_not_followed(directory: Path) -> None:
    """A link to a file or directory, out of the tree, in a circle or to nothing is not there, nor what it leads to."""
    outside = directory.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (directory / "sub").mkdir()
    (directory / "sub/a").write_text("a")
    for name, target in (
        ("file", Path("sub/a")),
        ("folder", Path("sub")),
        ("outside", outside),
        ("secret", outside / "secret"),
        ("sub/circle", Path("..")),
        ("dangling", Path("nothing")),
    ):
        (directory / name).symlink_to(target)
    tree = Tree(directory)
    assert list(tree.files) == ["sub/a"]
    assert tree.skipped == {}
    (outside / "secret").write_text("changed")
    assert tree.scan() == []
    (directory / "sub/a").unlink()
    (directory / "sub/a").symlink_to(outside / "secret")
    assert told(tree.scan()) == [("deleted", "sub/a")]


def test_the_watched_directory_itself_may_be_a_link(directory: Path) -> None:
    """A link given as the directory is followed; pointed elsewhere, it tells what differs there."""
    for name in ("first", "second"):
        (directory / name).mkdir()
        (directory / name / name).write_text(name)
    (directory / "current").symlink_to("first")
    tree = Tree(directory / "current")
    assert list(tree.files) == ["first"]
    (directory / "current").unlink()
    (directory / "current").symlink_to("second")
    assert told(tree.scan()) == [("deleted", "first"), ("added", "second")]


def test_what_is_not_a_regular_file_is_passed_over(directory: Path) -> None:
    """A FIFO without a writer and a socket neither hang the scan nor count as files or as skipped."""
    os.mkfifo(directory / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        (directory / "a").write_text("a")
        tree = Tree(directory)
    assert list(tree.files) == ["a"]
    assert tree.skipped == {}
    (directory / "a").unlink()
    os.mkfifo(directory / "a")
    assert told(tree.scan()) == [("deleted", "a")]


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        (".git", [".git/config", "sub/.git/x"]),
        ("*.tmp", ["a.tmp", "sub/b.tmp"]),
        ("sub/*.txt", ["sub/c.txt", "sub/deep/d.txt"]),
        ("sub/deep", ["sub/deep/d.txt"]),
        ("deep", ["sub/deep/d.txt"]),
        ("[ab].*", ["a.tmp", "sub/b.tmp"]),
        ("A.TMP", []),
        ("config/", []),
    ],
)
def test_what_is_ignored_is_as_if_it_were_not_there(directory: Path, pattern: str, gone: list[str]) -> None:
    """A pattern leaves out files and whole directories, at any depth or from the top; none is read or named."""
    names = [".git/config", "a.tmp", "sub/.git/x", "sub/b.tmp", "sub/c.txt", "sub/deep/d.txt", "z"]
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    tree = Tree(directory, ignore=[pattern])
    assert sorted(tree.files) == sorted(set(names) - set(gone))
    assert tree.skipped == {}
    for name in names:
        if name in gone:
            with pytest.raises(FileNotFoundError):
                tree.open(name)
        else:
            file, known = tree.open(name)
            with file:
                assert file.read().decode() == name
                assert known.sha256 == hashlib.sha256(name.encode()).hexdigest()


def test_a_file_beyond_the_limit_is_left_out_and_comes_back_when_it_shrinks(directory: Path) -> None:
    """Growing over the limit is a deletion, shrinking below it an addition; a file at the limit counts."""
    file = directory / "f"
    file.write_bytes(bytes(10))
    tree = Tree(directory, limit=10)
    assert tree.files["f"].size == 10
    file.write_bytes(bytes(11))
    assert told(tree.scan()) == [("deleted", "f")]
    assert tree.skipped == {"'f'": "it is larger than 10 bytes"}
    assert tree.scan() == []
    file.write_bytes(b"small")
    assert told(tree.scan()) == [("added", "f")]
    assert tree.skipped == {}


def test_where_directories_cannot_be_held_open_a_link_is_refused_all_the_same(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without openat(2), as on Windows, a file is opened only where its path leads to itself."""
    monkeypatch.setattr(os, "supports_dir_fd", set())
    (directory / "sub").mkdir()
    (directory / "sub" / "f").write_text("here")
    (directory / "link").symlink_to("sub")
    (directory / "sub" / "to").symlink_to("f")
    tree = Tree(directory)
    file, _ = tree.open("sub/f")
    with file:
        assert file.read() == b"here"
    for path in ("link/f", "sub/to", "sub", "none", "C:f", "sub\\f"):
        with pytest.raises(FileNotFoundError):
            tree.open(path)


def test_a_file_that_goes_between_listing_and_reading_is_gone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that vanishes under the scan is deleted, the rest is told as ever."""
    names = {"a", "b"}
    for name in names:
        (directory / name).write_text(name)
    tree = Tree(directory)
    for name in names:
        (directory / name).write_text(f"{name} changed")
    read: list[str] = []

    def remove_the_other(path: Path) -> None:
        read.append(path.name)
        (other,) = names - {path.name}
        (directory / other).unlink(missing_ok=True)

    before_reading(monkeypatch, remove_the_other)
    edits = told(tree.scan())
    (gone,) = names - {read[0]}
    assert edits == [("deleted", gone), ("modified", read[0])]
    assert tree.skipped == {}


def test_a_directory_that_becomes_a_file_under_the_scan_is_gone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are deleted, and none of them counts as left out; the next scan sees the file."""
    (directory / "sub").mkdir()
    (directory / "sub/a").write_text("a")
    tree = Tree(directory)

    def swap(path: Path) -> None:
        if path.parent.is_dir():
            shutil.rmtree(path.parent)
            path.parent.write_text("a file now")

    with monkeypatch.context() as patch:
        before_reading(patch, swap)
        assert told(tree.scan()) == [("deleted", "sub/a")]
    assert tree.skipped == {}
    assert told(tree.scan()) == [("added", "sub")]


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_file_swapped_under_the_scan_is_neither_followed_nor_waited_for(
    kind: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link or FIFO that takes a file's place after the listing is not read: what was known stays until next time."""
    outside = directory.parent / "secret"
    outside.write_text("secret")
    (directory / "a").write_text("a")
    tree = Tree(directory)

    def swap(path: Path) -> None:
        path.unlink()
        if kind == "link":
            path.symlink_to(outside)
        else:
            os.mkfifo(path)

    with monkeypatch.context() as patch:
        before_reading(patch, swap)
        assert tree.scan() == []
    assert list(tree.skipped) == ["'a'"]
    assert told(tree.scan()) == [("deleted", "a")]
    assert tree.skipped == {}


def test_a_file_written_while_it_is_read_is_read_again(
    directory: Path, settling_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes and stat of one moment: when a write falls between two reads of a file, it does not count as settled."""
    monkeypatch.setattr(scanning, "CHUNK", 4)
    file = directory / "a"
    file.write_bytes(b"old old ")
    settle(Tree(directory))
    digest = hashlib.sha256

    class Meddling:
        """A SHA-256 that writes to the file after its first block."""

        def __init__(self) -> None:
            self.real, self.blocks = digest(), 0

        def update(self, block: bytes) -> None:
            self.real.update(block)
            self.blocks += 1
            if self.blocks == 1:
                file.write_bytes(b"new new ")

        def hexdigest(self) -> str:
            return self.real.hexdigest()

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "sha256", Meddling)
        tree = Tree(directory)
    assert tree.files["a"].sha256 == digest(b"old new ").hexdigest()
    assert not tree.files["a"].settled
    assert [edit.sha256 for edit in tree.scan()] == [digest(b"new new ").hexdigest()]


def test_an_unreadable_file_stays_known_and_is_named(directory: Path) -> None:
    """Without permission a file keeps its last known content; a new one is left out; both are skipped with a reason."""
    known, new = directory / "known", directory / "new"
    known.write_text("known")
    tree = Tree(directory)
    known.write_text("known, changed")
    new.write_text("new")
    for file in (known, new):
        file.chmod(0)
    with unprivileged():
        for _ in range(2):
            assert tree.scan() == []
            assert list(tree.files) == ["known"]
            assert tree.skipped == {"'known'": "Permission denied", "'new'": "Permission denied"}
    for file in (known, new):
        file.chmod(0o644)
    with unprivileged():
        assert told(tree.scan()) == [("modified", "known"), ("added", "new")]
    assert tree.skipped == {}


@pytest.mark.parametrize("mode", [0o000, 0o444], ids=["no listing", "no entering"])
def test_an_unreadable_directory_keeps_its_files(mode: int, directory: Path) -> None:
    """What was below a directory without permission is not deleted as far as anybody knows; its neighbours go on."""
    private = directory / "private"
    private.mkdir()
    for name in ("private/a", "private/b", "private-not", "z"):
        (directory / name).write_text(name)
    tree = Tree(directory)
    known = dict(tree.files)
    (private / "a").write_text("changed")
    private.chmod(mode)
    try:
        with unprivileged():
            assert tree.scan() == []
            assert tree.files.keys() == known.keys()
            assert set(tree.skipped.values()) == {"Permission denied"}
            assert set(tree.skipped) == ({"'private/'"} if mode == 0 else {"'private/a'", "'private/b'"})
        (directory / "private-not").unlink()
        with unprivileged():
            assert told(tree.scan()) == [("deleted", "private-not")]
    finally:
        private.chmod(0o755)
    with unprivileged():
        assert told(tree.scan()) == [("modified", "private/a")]
    assert tree.skipped == {}


def test_an_unreadable_directory_in_the_place_of_a_file_replaces_it(directory: Path) -> None:
    """A file that gave way to a closed directory is deleted, and the other way round: that much can be seen."""
    (directory / "a").write_text("a file")
    (directory / "b").mkdir()
    (directory / "b/c").write_text("below b")
    tree = Tree(directory)
    (directory / "a").unlink()
    (directory / "a").mkdir(mode=0)
    shutil.rmtree(directory / "b")
    (directory / "b").write_text("a file")
    (directory / "b").chmod(0)
    with unprivileged():
        assert told(tree.scan()) == [("deleted", "a"), ("deleted", "b/c")]
    assert tree.skipped.keys() == {"'a/'", "'b'"}
    (directory / "a").chmod(0o755)


def test_a_missing_directory_deletes_nothing(directory: Path) -> None:
    """While the watched directory is away a scan raises OSError and forgets nothing; back again, it tells the rest."""
    (directory / "a").write_text("a")
    (directory / "b").write_text("b")
    tree = Tree(directory)
    away = directory.with_name("away")
    directory.rename(away)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            tree.scan()
    assert list(tree.files) == ["a", "b"] or list(tree.files) == ["b", "a"]
    (away / "b").unlink()
    away.rename(directory)
    assert told(tree.scan()) == [("deleted", "b")]


def test_a_directory_that_moves_away_under_the_scan_deletes_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the whole directory goes between listing and reading, its files are not taken for deleted."""
    for name in "abc":
        (directory / name).write_text(name)
    tree = Tree(directory)
    away = directory.with_name("away")

    def move_away(_: Path) -> None:
        if directory.exists():
            directory.rename(away)

    with monkeypatch.context() as patch:
        before_reading(patch, move_away)
        with pytest.raises(FileNotFoundError):
            tree.scan()
    away.rename(directory)
    assert tree.scan() == []


@pytest.mark.parametrize("kind", ["missing", "a file", "unreadable"])
def test_a_tree_of_what_is_no_readable_directory_is_refused(kind: str, directory: Path) -> None:
    """A missing directory, a file in its place or one without permission raises OSError that says so."""
    target = directory / "target"
    if kind == "a file":
        target.write_text("")
    elif kind == "unreadable":
        target.mkdir(mode=0)
    expected = {"missing": FileNotFoundError, "a file": NotADirectoryError, "unreadable": PermissionError}[kind]
    with unprivileged(), pytest.raises(expected):
        Tree(target)


@pytest.mark.parametrize(("name", "levels"), [("d", 1100), ("d" * 250, 20)], ids=["more than frames", "too long"])
def test_a_very_deep_directory_is_no_trouble(name: str, levels: int, directory: Path) -> None:
    """More levels than Python has frames are walked; what no path can name any more is left out, and that is said."""
    here = os.open(directory, os.O_RDONLY)
    try:
        for _ in range(levels):
            os.mkdir(name, dir_fd=here)  # by its whole path the system may refuse it
            below = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open("a", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)
    try:
        tree = Tree(directory)
    finally:
        subprocess.run(["rm", "-r", directory / name], check=True)  # shutil.rmtree recurses, and runs out of frames
    path = f"{name}/" * levels + "a"
    if len(path) < 4000:
        assert list(tree.files) == [path]
        assert tree.skipped == {}
    else:
        assert tree.files == {}
        assert list(tree.skipped.values()) == ["File name too long"]


@pytest.mark.parametrize("name", ["file", "folder"])
def test_an_abandoned_scan_ends(name: str, directory: Path) -> None:
    """Once nobody wants its result, a scan raises Abandoned before it lists or hashes on, and forgets nothing."""
    (directory / "folder").mkdir()
    (directory / "file").write_text("a")
    tree = Tree(directory / name) if name == "folder" else Tree(directory)
    known = dict(tree.files)
    tree.abandoned = True
    with pytest.raises(Abandoned):
        tree.scan() if name == "folder" else tree._look(str(directory / "file"))
    assert tree.files == known


# --- any script of edits ---

PATHS = [Path(name) for name in ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/f", "é", "d\n/a")]
paths = st.sampled_from(PATHS)
CONTENTS = [b"", b"one", b"two", b"three"]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write(path: Path, content: bytes) -> None:
    if path.exists() and not path.is_file():
        raise FileExistsError(path)  # a FIFO: writing would wait for a reader
    path.write_bytes(content)


def do(directory: Path, step: tuple[object, ...]) -> None:
    """Do one edit of a script, unless the directory does not allow it (a parent that is a file, a missing source)."""
    match step:
        case ("write", Path() as path, bytes() as content):
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            write(directory / path, content)
        case ("write with the old times", Path() as path, bytes() as content):
            status = (directory / path).stat()
            write(directory / path, content)
            os.utime(directory / path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case ("touch", Path() as path):
            os.utime(directory / path)
        case ("remove", Path() as path):
            remove(directory / path)
        case ("make a directory", Path() as path):
            (directory / path).mkdir(parents=True)
        case ("rename", Path() as path, Path() as other):
            (directory / path).rename(directory / other)
        case ("link", Path() as path, Path() as other):
            (directory / path).symlink_to(directory / other)
        case ("link outside", Path() as path):
            (directory / path).symlink_to(directory.parent)
        case ("fifo", Path() as path):
            os.mkfifo(directory / path)
        case _:
            raise AssertionError(step)


steps = st.one_of(
    st.tuples(st.just("write"), paths, st.sampled_from(CONTENTS)),
    st.tuples(st.just("write with the old times"), paths, st.sampled_from(CONTENTS)),
    st.tuples(st.just("touch"), paths),
    st.tuples(st.just("remove"), paths),
    st.tuples(st.just("make a directory"), paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("link outside"), paths),
    st.tuples(st.just("fifo"), paths),
)


@given(script=st.lists(st.lists(steps, max_size=5), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60, print_blob=True)
def test_the_edits_of_a_scan_lead_to_what_stands_there(script: list[list[tuple[object, ...]]]) -> None:
    """After any edits, and a scan now and then, a copy that did what the scans told equals the directory."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "watched"
        directory.mkdir()
        tree = Tree(directory)
        model: State = {}
        for stretch in script:
            for step in stretch:
                with contextlib.suppress(OSError):  # not possible as the directory is
                    do(directory, step)
            apply(tree.scan(), model)
            assert model == state(directory)
        assert tree.skipped == {}
        assert tree.scan() == []


def test_names_are_utf8_whatever_the_locale(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system's names are read as Latin-1, a file is announced, and opened, by the UTF-8 of its bytes."""
    monkeypatch.setattr("servers.tree.os.fsencode", lambda name: str(name).encode("latin-1"))
    monkeypatch.setattr("servers.tree.os.fsdecode", lambda name: bytes(name).decode("latin-1"))
    for name in ("café", "日"):  # as Python has them there
        (directory / name.encode().decode("latin-1")).write_text(name)
    (directory / "caf\xe9").write_text("these bytes are no UTF-8")
    tree = Tree(directory)
    assert tree.files.keys() == {"café", "日"}
    assert list(tree.skipped) == [r"'caf\xe9'"]
    file, _ = tree.open("café")
    with file:
        assert file.read() == "café".encode()


def test_another_directory_under_the_same_name_is_another(directory: Path) -> None:
    """The directories of a scan differ when one was replaced: it must be listened to anew."""
    tree = Tree(directory)
    (directory / "sub").mkdir()
    (directory / "new").mkdir()
    tree.scan()
    before = tree.directories
    (directory / "sub").rename(directory.parent / "old")
    (directory / "new").rename(directory / "sub")
    tree.scan()
    assert before[str(directory / "sub")] != tree.directories[str(directory / "sub")]


# --- the watch ---


@pytest.fixture
def hints_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look every few seconds, only hints can lead to a scan: a test sees whether one was missed."""
    monkeypatch.setattr(sources, "RESCAN_MS", 3_600_000)


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


def known(tree: Tree) -> State:
    return {path: (file.size, file.sha256) for path, file in tree.files.items()}


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
            await follow_until(feed, model, 0, lambda: len(model) == 200)
            await writer

    asyncio.run(body())
    assert model == state(directory)
    assert [u.change for u in feed.read(0).updates].count("added") == 200


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "servers"]


def test_a_directory_that_vanishes_is_waited_for(
    directory: Path, hints_only: None, scans: list[float], caplog: pytest.LogCaptureFixture
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
            looked = len(scans)
            await until(lambda: len(scans) == looked + 2)
            (away / "b").unlink()
            await asyncio.to_thread(away.rename, directory)
            position = await follow_until(feed, model, 0, lambda: model == state(directory))
            assert [(u.change, u.path) for u in feed.read(0).updates] == [("deleted", "b")]
            (directory / "a").write_text("changed")
            await follow_until(feed, model, position, lambda: model == state(directory))

    asyncio.run(body())
    assert warnings(caplog) == [f"{directory} cannot be read (No such file or directory): waiting for it"]


def test_a_directory_that_is_closed_for_a_while_is_waited_for(
    directory: Path, hints_only: None, scans: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Without permission to list the watched directory nothing is published; one line says so, and it goes on after."""
    (directory / "a").write_text("a")
    feed, tree = Feed(), Tree(directory)
    model = known(tree)
    if os.geteuid() == 0:
        os.chown(directory, NOBODY, NOBODY)

    def closed() -> list[str]:  # a scan that was half-way through names the file it could not open any more, too
        return [line for line in warnings(caplog) if line != "left out 'a': Permission denied"]

    async def body() -> None:
        async with watching(feed, tree):
            await until(lambda: len(scans) == 2)  # the Tree's own, and that of the watch
            await asyncio.to_thread(directory.chmod, 0)
            await until(closed)
            looked = len(scans)
            await until(lambda: len(scans) == looked + 2)
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
    directory: Path, hints_only: None, scans: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """The system says nothing of a parent that moves; once the absence was seen, what comes in its place is watched."""
    place, away = directory / "sub", directory.with_name("away")
    place.mkdir()
    feed, tree = Feed(), Tree(place)
    model: State = {}

    async def body() -> None:
        async with watching(feed, tree):
            await until(lambda: len(scans) == 2)  # the Tree's own, and that of the watch
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


def in_bytes(directory: Path, name: bytes) -> str:
    """A name of these bytes in the directory, as the system's calls take it."""
    return os.fsdecode(os.fsencode(directory) + b"/" + name)


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
def test_a_directory_whose_path_is_not_utf8_is_looked_at_by_the_clock(
    directory: Path, hints_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its names cannot be had from what hears the system: it is looked at twice a second, and that is said."""
    place = Path(in_bytes(directory, b"caf\xe9"))
    place.mkdir()
    asyncio.run(told_of_three(place))
    assert warnings(caplog) == [
        "no hints from the system (the path of the directory is not UTF-8): looking every 0.5 s instead"
    ]


async def told_of_three(directory: Path) -> None:
    """Watch the directory, write a file into each of three new ones, and see each announced."""
    feed, position, model = Feed(), 0, State()
    async with watching(feed, Tree(directory)):
        for number in range(3):  # each is listened to anew, for the directories are others
            (directory / f"{number}").mkdir()
            (directory / f"{number}/a").write_text("new")
            position = await follow_until(feed, model, position, lambda: model == state(directory))


FAILURES: dict[str, Callable[[], Exception]] = {
    "within a group": lambda: ExceptionGroup("unhandled", [ExceptionGroup("again", [RuntimeError("it broke")])]),
    "as it is": lambda: LookupError("it broke"),
    "without a word": OverflowError,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_whatever_fails_while_listening_does_not_end_the_watch(
    failure: str, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw leaves a watch that looks twice a second, and one line that says why."""

    async def awatch(*names: str, **options: object) -> AsyncIterator[object]:
        yield set()
        raise FAILURES[failure]()

    monkeypatch.setattr(watchfiles, "awatch", awatch)
    asyncio.run(told_of_three(directory))
    reason = "OverflowError()" if failure == "without a word" else "it broke"
    assert warnings(caplog) == [f"no hints from the system ({reason}): looking every 0.5 s instead"]


def test_hints_are_asked_for_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that gives no hints for a while, since others use them all, is asked again later."""
    monkeypatch.setattr(sources, "PAUSE", 0.001)
    asked = 0

    async def awatch(*names: str, **options: object) -> AsyncIterator[object]:
        nonlocal asked
        asked += 1
        raise OSError("OS file watch limit reached")
        yield

    monkeypatch.setattr(watchfiles, "awatch", awatch)

    async def body() -> None:
        async with watching(Feed(), Tree(directory)):
            await until(lambda: asked > 2)

    asyncio.run(body())


def test_listening_to_what_is_gone_ends_with_a_hint(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that went after the scan that listed it is no trouble: look again, and listen anew."""

    async def body() -> None:
        hints = sources.Hints()
        async with asyncio.timeout(LIMIT):
            await hints.listen({str(directory), str(directory / "gone")})
        assert hints.came.is_set()

    asyncio.run(body())
    assert warnings(caplog) == []


def test_a_quiet_directory_is_left_alone(directory: Path, hints_only: None, scans: list[float]) -> None:
    """A scan follows a hint; without one there is none."""
    feed, tree = Feed(), Tree(directory)

    async def body() -> None:
        async with watching(feed, tree):
            await until(lambda: len(scans) == 2)  # the Tree's own, and that of the watch
            (directory / "a").write_text("a")
            await follow_until(feed, {}, 0, lambda: feed.head > 0)
            looked = len(scans)
            await asyncio.sleep(0.3)
            assert len(scans) - looked <= 3  # a hint may have been on its way

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
            assert watched() - before == 2
            (directory / "sub/new").mkdir()
            await until(lambda: watched() - before == 3)
        await until(lambda: watched() == before)

    asyncio.run(body())


def test_without_hints_from_the_system_the_directory_is_looked_at_all_the_same(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the system refuses to watch, here for want of file descriptors, one line says so and edits arrive later."""
    feed, tree = Feed(), Tree(directory)
    model: State = {}

    def holds(content: str) -> Callable[[], bool]:
        expected = len(content), hashlib.sha256(content.encode()).hexdigest()
        return lambda: model.get("a") == expected

    async def body() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            os.close(taken.pop())  # the scan itself needs one
            async with watching(feed, tree):
                for content in ("one", "three"):
                    (directory / "a").write_text(content)
                    await follow_until(feed, model, feed.head, holds(content))
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    asyncio.run(body())
    assert sum("looking every 0.5 s instead" in text for text in caplog.messages) == 1


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

    with pytest.MonkeyPatch.context() as patch:
        before_reading(patch, lambda _: hashing.set())
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
