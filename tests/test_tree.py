"""A directory as it stands: looked at whole, by name or in slices; what is told of it, and what opening gives."""

import contextlib
import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import hashing
from servers import tree as scanning
from servers.feed import Feed
from servers.hashing import Abandoned, File
from servers.hints import Inotify
from servers.places import Place
from servers.tree import Edit, Replaced, Tree
from tests.support_tree import LIMIT, State, a_directory, apply, do, known, state, told, unprivileged


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory that an unprivileged user may enter, which pytest's own are not."""
    with a_directory() as path:
        yield path


@pytest.fixture
def settling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust a file's stat soon after it was changed, so that a test need not wait."""
    monkeypatch.setattr(hashing, "FRESH", 50_000_000)


def settle(tree: Tree) -> None:
    """Scan until no file would be read again."""
    deadline = time.monotonic() + LIMIT
    while not all(file.settled for file in tree.files.values()):
        assert time.monotonic() < deadline
        assert tree.scan() == []


def before_reading(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[Path], None]) -> None:
    """Have something happen to the directory between the listing and the reading of each file."""
    look = Place.open

    def meddled(place: Place, name: str) -> BinaryIO:
        meddle(Path(f"/proc/self/fd/{place.at}").readlink() / name)
        return look(place, name)

    monkeypatch.setattr(Place, "open", meddled)


# --- the scan ---


def test_what_stands_there_at_the_first_look_is_no_edit(directory: Path) -> None:
    """A new Tree knows the files with size and hash, and the next scan tells nothing."""
    (directory / "sub").mkdir()
    (directory / "sub/a").write_bytes(b"one")
    tree = Tree(directory)
    assert {path: (file.size, file.sha256) for path, file in tree.files.items()} == state(directory)
    assert tree.scan() == []
    assert tree.folders.keys() == {"", "sub/"}


def test_create_modify_rename_and_delete(directory: Path) -> None:
    """Each edit of a file is told with its path, size and hash; a rename is a deletion and an addition."""
    tree = Tree(directory)
    file = directory / "a.csv"
    file.write_bytes(b"one")
    assert tree.scan() == [Edit(0.0, "a.csv", "added", 3, hashlib.sha256(b"one").hexdigest())]
    file.write_bytes(b"three")
    assert tree.scan() == [Edit(0.0, "a.csv", "modified", 5, hashlib.sha256(b"three").hexdigest())]
    file.rename(directory / "b.csv")
    assert told(tree.scan()) == [("added", "b.csv"), ("deleted", "a.csv")]
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


def test_a_touched_file_is_modified_and_its_hash_the_same(directory: Path, settling_at_once: None) -> None:
    """A new modification time is told, settled or not, or copies would keep the old one; anything else of it is not."""
    file = directory / "a"
    file.write_bytes(b"one")
    digest, tree = hashlib.sha256(b"one").hexdigest(), Tree(directory)
    for number in range(1, 3):
        os.utime(file, (1, number))
        assert [(edit.change, edit.sha256, edit.mtime) for edit in tree.scan()] == [("modified", digest, number)]
        file.chmod(0o666 if number % 2 else 0o644)
        os.utime(file, (2, number))
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
    assert told(tree.scan()) == [("modified", "b")]
    assert read == ["b"]


def test_a_file_just_written_is_read_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortly after a change the same stat may hide another one: the file is not settled yet."""
    monkeypatch.setattr(hashing, "FRESH", 60 * 10**9)  # shortly is whatever this machine takes
    (directory / "a").write_bytes(b"one")
    assert not Tree(directory).files["a"].settled


def test_a_renamed_directory_takes_its_files_along(directory: Path) -> None:
    """All files below are added under the new name, then deleted under the old, each in order of paths."""
    (directory / "old/deep").mkdir(parents=True)
    for name in ("old/b", "old/a", "old/deep/c", "z"):
        (directory / name).write_text(name)
    tree = Tree(directory)
    (directory / "old").rename(directory / "new")
    assert told(tree.scan()) == [
        ("added", "new/a"),
        ("added", "new/b"),
        ("added", "new/deep/c"),
        ("deleted", "old/a"),
        ("deleted", "old/b"),
        ("deleted", "old/deep/c"),
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
        for file in (name, "both"):
            (directory / name / file).write_text(file)
            os.utime(directory / name / file, (1, 1))
    (directory / "current").symlink_to("first")
    tree = Tree(directory / "current")
    assert sorted(tree.files) == ["both", "first"]
    (directory / "current").unlink()
    (directory / "current").symlink_to("second")
    assert told(tree.scan()) == [("added", "second"), ("deleted", "first")]


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
        ("/*.tmp", ["a.tmp"]),
        ("sub/*.txt", ["sub/c.txt"]),
        ("sub/**/*.txt", ["sub/c.txt", "sub/deep/d.txt"]),
        ("sub/deep", ["sub/deep/d.txt"]),
        ("deep/", ["sub/deep/d.txt"]),
        ("/deep", []),
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
    assert edits == [("modified", read[0]), ("deleted", gone)]
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
    monkeypatch.setattr(hashing, "CHUNK", 4)
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
    """More levels than Python has frames or a process has descriptors are walked, and more than a path can name."""
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
    assert list(tree.files) == [path]
    assert tree.skipped == {}


@pytest.mark.parametrize("name", ["file", "folder"])
def test_an_abandoned_look_ends(name: str, directory: Path) -> None:
    """Once nobody wants its result, a look raises Abandoned before it lists or hashes on, and forgets nothing."""
    (directory / "folder").mkdir()
    (directory / "file").write_text("a")
    tree = Tree(directory)
    before = dict(tree.files)
    tree.abandoned = True
    (directory / "file").write_text("changed")
    with pytest.raises(Abandoned):
        tree.scan() if name == "folder" else tree.look(["file"])
    assert tree.files == before


# --- any script of edits ---

PATHS = [Path(name) for name in ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/f", "é", "d\n/a")]
paths = st.sampled_from(PATHS)
CONTENTS = [b"", b"one", b"two", b"three"]


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
    monkeypatch.setattr("servers.places.os.fsencode", lambda name: str(name).encode("latin-1"))
    monkeypatch.setattr("servers.places.os.fsdecode", lambda name: bytes(name).decode("latin-1"))
    for name in ("café", "日"):  # as Python has them there
        (directory / name.encode().decode("latin-1")).write_text(name)
    (directory / "caf\xe9").write_text("these bytes are no UTF-8")
    tree = Tree(directory)
    assert tree.files.keys() == {"café", "日"}
    assert list(tree.skipped) == [r"'caf\xe9'"]
    file, _ = tree.open("café")
    with file:
        assert file.read() == "café".encode()


# --- looks at names, and sweeps ---


def done(directory: Path, stretch: list[tuple[object, ...]]) -> list[str]:
    """Do some edits; the names that a hint would give."""
    names, top = list[str](), os.path.realpath(directory)
    for step in stretch:
        with contextlib.suppress(OSError):  # not possible as the directory is
            do(directory, step)
        paths = [path for path in step if isinstance(path, Path)]
        through = [Path(os.path.realpath(directory / path)) for path in paths]  # a link is written through
        names += [path.as_posix() for path in paths]
        names += [path.relative_to(top).as_posix() for path in through if path.is_relative_to(top)]
    return names


@pytest.mark.parametrize("how", ["look", "sweep"])
@given(script=st.lists(st.lists(steps, max_size=5), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40, print_blob=True)
def test_a_look_at_what_a_script_names_finds_what_a_scan_would(
    how: str, script: list[list[tuple[object, ...]]]
) -> None:
    """Told the names that a script touched, or swept in slices, a copy equals the directory all the same."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "SLICE", 0.0)
        directory = Path(name) / "watched"
        directory.mkdir()
        tree, model = Tree(directory), State()
        for stretch in script:
            names = done(directory, stretch)
            if how == "look":
                apply(tree.look(names), model)
            else:
                for edits in tree.sweep():
                    apply(edits, model)
            assert model == state(directory)
            apply(tree.scan(), copy := dict(model))
            assert copy == model


def test_a_look_reads_and_lists_what_it_is_asked_about_only(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in a directory of many costs a look at that name: nothing else is listed, and none of its neighbours."""
    for number in range(300):
        (directory / f"{number}").write_text("a")
    (directory / "sub").mkdir()
    tree = Tree(directory)
    (directory / "7").write_text("changed")
    (directory / "8").write_text("changed, but nobody has said so")
    listed: list[Place] = []
    looked: list[str] = []
    real = Place.stat
    monkeypatch.setattr(Place, "entries", listed.append)

    def noted(place: Place, name: str) -> os.stat_result:
        looked.append(name)
        return real(place, name)

    monkeypatch.setattr(Place, "stat", noted)
    assert told(tree.look(["7"])) == [("modified", "7")]
    assert (listed, looked) == ([], ["7"])


def test_a_directory_that_was_not_known_is_looked_at_whole(directory: Path) -> None:
    """A renamed directory is told without its files: a name that was not known, or is below one, leads to all of it."""
    for name in ("one/a", "one/deep/b", "two/c"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    tree = Tree(directory)
    (directory / "one").rename(directory / "new")
    assert told(tree.look(["one", "new/deep/nothing"])) == [
        ("added", "new/a"),
        ("added", "new/deep/b"),
        ("deleted", "one/a"),
        ("deleted", "one/deep/b"),
    ]
    (directory / "two").rename(directory / "away")
    (directory / "new").rename(directory / "two")  # another directory under a known name
    assert told(tree.look(["two"])) == [("added", "two/a"), ("added", "two/deep/b"), ("deleted", "two/c")]


def test_a_sweep_gives_way_and_finds_what_looks_in_between_did_not(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the slices of a sweep names can be looked at; a file that moves to where it has been is not lost."""
    monkeypatch.setattr(scanning, "SLICE", 0.0)
    for name in "abcd":
        (directory / name).mkdir()
        for number in range(300):
            (directory / name / f"{number}").write_text(name)
    tree = Tree(directory)
    model = known(tree)
    (directory / "b/7").unlink()
    slices = 0
    for edits in tree.sweep():
        apply(edits, model)
        slices += 1
        if slices == 2:
            (directory / "a").rename(directory / "e")
            apply(tree.look(["a", "e"]), model)
            (directory / "c/1").write_text("changed")
            apply(tree.look(["c/1"]), model)
    assert slices > 4
    assert model == state(directory)
    assert tree.scan() == []


@pytest.mark.parametrize("seed", range(4))
def test_whatever_moves_between_the_slices_of_a_sweep_a_copy_equals_the_directory(
    seed: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories are moved, replaced and removed, and looked at, between the slices: nothing is lost or made up."""
    monkeypatch.setattr(scanning, "SLICE", -1.0)  # a slice for each directory
    rng, names = random.Random(seed), [f"{one}{rest}" for one in "abc" for rest in ("", "/a", "/b", "/b/c")]
    free = ["x", "y", "a/x", "b/x", "x/y"]
    tree = Tree(directory)
    model = known(tree)
    for _ in range(10):
        for name in free:
            shutil.rmtree(directory / name, ignore_errors=True)
        for name in names:
            with contextlib.suppress(OSError):  # a parent that is a file
                (directory / name).mkdir(parents=True, exist_ok=True)
                (directory / name / "file").write_text(name)
        apply(tree.scan(), model)
        for edits in tree.sweep():
            apply(edits, model)
            stretch: list[tuple[object, ...]] = [
                ("rename", Path(rng.choice(names)), Path(rng.choice(free))),
                ("remove" if rng.random() < 0.2 else "make a directory", Path(rng.choice(names))),
            ]
            apply(tree.look(done(directory, stretch)), model)
        assert model == known(tree) == state(directory)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_directory_renamed_between_the_slices_of_a_sweep_is_heard_by_its_new_name(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sweep has still to list below it is not listed, nor listened to, by the name that it had."""
    monkeypatch.setattr(scanning, "SLICE", -1.0)
    for name in ("one", "two", "three"):
        (directory / "old" / name).mkdir(parents=True)
    tree, heard = Tree(directory, first_look=False), Inotify()
    tree.listener = heard
    try:
        tree.scan()
        sweep = tree.sweep()
        for _ in range(3):
            next(sweep)
        (directory / "old").rename(directory / "new")
        (directory / "old").mkdir()
        tree.look(["old", "new"])
        assert list(sweep)
        heard.wait(0)
        for name in ("one", "two", "three"):
            (directory / "new" / name / "file").write_text("a")
        names, aim = set[str](), {f"new/{name}/file" for name in ("one", "two", "three")}
        while not aim <= names:
            more, _ = heard.wait(LIMIT)
            assert more
            names |= {*more}
        assert not {name for name in names if name.startswith("old/")}
    finally:
        heard.close()


def test_a_directory_that_goes_while_it_is_looked_at_leaves_nothing(directory: Path) -> None:
    """A file found in it before it went, and one that was known, are no files of the tree; back, they are."""
    (directory / "d/e").mkdir(parents=True)
    (directory / "d/e/known").write_text("a")
    tree, away = Tree(directory), directory.with_name("away")
    (directory / "d/e/new").write_text("b")

    def go(path: Path) -> None:
        path.parent.rename(away)

    with pytest.MonkeyPatch.context() as patch:
        before_reading(patch, go)
        assert told(tree.look(["d/e/new", "d"])) == [("deleted", "d/e/known")]
    away.rename(directory / "d/e")
    assert told(tree.look(["d/e"])) == [("added", "d/e/known"), ("added", "d/e/new")]


def test_a_directory_swapped_for_a_link_between_two_looks_leaks_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that becomes a link out of the tree after its parent was listed is not entered: no name, no hash."""
    outside = directory.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (directory / "d").mkdir()
    (directory / "d/x").write_text("x")
    real = Place.directory

    def swapped(place: Place, name: str) -> Place:
        if not (directory / name).is_symlink():
            shutil.rmtree(directory / name)
            (directory / name).symlink_to(outside)
        return real(place, name)

    monkeypatch.setattr(Place, "directory", swapped)
    tree = Tree(directory)
    assert tree.files == {}
    assert all(not edits for edits in (tree.scan(), tree.look(["d/secret"]), *tree.sweep()))


# --- copies, replaced directories, other clocks ---


def test_a_mirrors_copy_is_left_out_and_its_own_directory_never_served(directory: Path) -> None:
    """A directory below that holds `.mirror` would come again, level by level; at the top `.mirror` is left out."""
    for name in (".mirror/state", "a", "copy/.mirror/lock", "copy/a", "other/b"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    tree = Tree(directory)
    assert sorted(tree.files) == ["a", "other/b"]
    assert tree.skipped == {"'copy/'": "it is a mirror's copy (it holds .mirror)"}
    (directory / "other/.mirror").mkdir()
    assert told(tree.look(["other/.mirror"])) == [("deleted", "other/b")]
    shutil.rmtree(directory / "copy/.mirror")
    assert told(tree.scan()) == [("added", "copy/a")]


@pytest.mark.parametrize(("left", "believed"), [(0, False), (90, False), (160, True), (300, True)])
def test_another_directory_without_most_of_the_files_is_not_believed(
    left: int, believed: bool, directory: Path
) -> None:
    """One that lacks more than half, or has nothing, is as if it were away; with the first one back, all is well."""
    for number in range(300):
        (directory / f"{number}").write_text("a")
    tree = Tree(directory)
    other, away = directory.with_name("other"), directory.with_name("away")
    other.mkdir()
    for number in range(left):
        shutil.copy2(directory / f"{number}", other)
    directory.rename(away)
    other.rename(directory)
    for look in (lambda: tree.look(["1"]), lambda: list(tree.sweep())):
        with pytest.raises(Replaced):
            look()
    if believed:
        assert told(tree.scan()) == sorted(("deleted", f"{number}") for number in range(left, 300))
        return
    with pytest.raises(Replaced, match=f"without {300 - left} of 300 files"):
        tree.scan()
    assert len(tree.files) == 300
    directory.rename(other)
    away.rename(directory)
    assert tree.scan() == tree.look(["1"]) == []


def test_a_directory_emptied_by_hand_is_told(directory: Path) -> None:
    """The same directory with nothing in it any more has been emptied, however many files that were."""
    for number in range(300):
        (directory / f"{number}").write_text("a")
    tree = Tree(directory)
    for number in range(300):
        (directory / f"{number}").unlink()
    assert len(tree.scan()) == 300


def test_a_modification_time_ahead_of_the_clock_settles_as_any_other(directory: Path) -> None:
    """Anybody may set it to any time; that of the inode, which nobody can set, says when the file last changed."""
    (directory / "a").write_text("a")
    os.utime(directory / "a", (2_000_000_000, 2_000_000_000))
    settle(Tree(directory))


def test_a_clock_set_back_does_not_keep_a_file_from_settling(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose every time is ahead of the clock is trusted once it has been seen unchanged for long enough."""
    (directory / "a").write_text("a")
    monkeypatch.setattr("servers.hashing.time.clock_gettime_ns", lambda clock: 1_000_000_000_000_000_000)
    monkeypatch.setattr("servers.hashing.time.time_ns", lambda: 1_000_000_000_000_000_000)
    settle(Tree(directory))


# --- files that grow ---


def hashed(tree: Tree, name: str) -> File | None:
    """What hashing apart gives, and the tree then takes; None when the file did not stand still."""
    for result in tree.hashing(name):
        if result is not None:
            tree.hashed(name, result)
            return result
    return None


def append(file: Path, data: bytes) -> bytes:
    with file.open("ab") as log:
        log.write(data)
    return file.read_bytes()


@pytest.fixture
def large(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is large, here, with one block more than its beginning and its end."""
    monkeypatch.setattr(hashing, "LARGE", 1000)
    monkeypatch.setattr(hashing, "CHUNK", 1000)
    monkeypatch.setattr(hashing, "BLOCK", 1000)
    monkeypatch.setattr(hashing, "VERIFY", 1e9)  # reading so few bytes takes no time
    (directory / "log").write_bytes(b"x" * 3000)
    return directory / "log"


def test_of_a_file_that_grows_only_what_has_come_is_read(large: Path, directory: Path) -> None:
    """From the first look on it has the hash of all its bytes, and what was appended is read, and its two ends."""
    tree = Tree(directory)
    tree.apart = []
    for number in range(20):
        content = append(large, b"line %d\n" % number)
        assert tree.look(["log"]) == []
        assert tree.apart.pop() == "log"
        before = tree.read_bytes
        result = hashed(tree, "log")
        assert result is not None
        assert (result.size, result.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert tree.files["log"] == result
        assert tree.read_bytes - before < 10


@pytest.mark.parametrize("where", [0, 2999, -1])
def test_a_file_written_anew_at_either_end_is_read_whole(where: int, large: Path, directory: Path) -> None:
    """A change of its beginning or its end, or a shorter file that has grown again, is no growth."""
    tree = Tree(directory)
    tree.apart = []
    hashed(tree, "log")
    content = bytearray(large.read_bytes() + b"more")
    content[where] = ord("y")
    large.write_bytes(content)
    result = hashed(tree, "log")
    assert result is not None
    assert result.sha256 == hashlib.sha256(content).hexdigest()


def test_a_change_in_the_middle_of_a_file_that_grows_is_found_when_it_is_verified(
    large: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is believed to have only grown is not settled; reading all of it tells, and has all of it hashed again."""
    tree = Tree(directory)
    tree.apart = []
    hashed(tree, "log")
    content = bytearray(large.read_bytes() + b"more")
    content[1500] = ord("y")
    with large.open("r+b") as file:
        file.write(content)
    result = hashed(tree, "log")
    assert result is not None
    assert not result.settled
    assert [*tree.verifying("log")][-1] is False
    result = hashed(tree, "log")
    assert result is not None
    assert result.sha256 == hashlib.sha256(content).hexdigest()


def test_a_file_goes_on_being_hashed_while_it_is_verified(
    large: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come is known before all of it has been read; and then it is believed to have only grown again."""
    monkeypatch.setattr(hashing, "VERIFY", 0)  # until when does not depend on how long the first reading took
    tree = Tree(directory)
    tree.apart = []
    content = append(large, b"a line")
    verifying = tree.verifying("log")
    assert next(verifying) is None
    result = hashed(tree, "log")
    assert result is not None
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    before = tree.sure_at("log")
    assert [*verifying][-1] is True
    assert tree.sure_at("log") > before
    assert [*tree.verifying("log")][-1] is True


def test_a_file_that_has_grown_since_is_opened_as_it_was_known(large: Path, directory: Path) -> None:
    """A download can serve exactly the bytes that the hash is of, while more are appended: nothing is read for it."""
    tree = Tree(directory)
    content = large.read_bytes()
    append(large, b"more")
    before = tree.read_bytes
    file, known = tree.open("log")
    with file:
        assert file.read(known.size) == content
    assert known.sha256 == hashlib.sha256(content).hexdigest()
    assert tree.read_bytes == before


def test_one_large_file_at_a_time_is_read_for_requests(large: Path, directory: Path) -> None:
    """A large file that has changed is read once for all who ask; who would have to wait for another is told so."""
    tree = Tree(directory)
    (directory / "log").write_bytes(b"y" * 2000)
    with tree._reading, pytest.raises(BlockingIOError):
        tree.open("log")
    before = tree.read_bytes
    for _ in range(3):
        file, known = tree.open("log")
        file.close()
        assert known.sha256 == hashlib.sha256(b"y" * 2000).hexdigest()
    assert tree.read_bytes - before == 2000


def test_what_no_look_has_found_is_not_opened(directory: Path) -> None:
    """Only what the tree knows is served: no second reading of a rule could tell otherwise, by case or by form."""
    tree = Tree(directory)
    (directory / "new").write_text("new")
    with pytest.raises(FileNotFoundError):
        tree.open("new")
    tree.look(["new"])
    tree.open("new")[0].close()


def test_before_the_first_look_nothing_can_be_opened(directory: Path) -> None:
    """What is not known yet is not absent: whoever asks is told to come again."""
    (directory / "a").write_text("a")
    tree = Tree(directory, first_look=False)
    with pytest.raises(BlockingIOError):
        tree.open("a")
    tree.scan()
    tree.open("a")[0].close()
