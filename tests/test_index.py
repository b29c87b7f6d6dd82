"""The hashes that a server keeps for the next one: what is believed of them, and what is not."""

import logging
import os
import shutil
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from servers import hashing
from servers.index import Index
from servers.places import Place
from servers.tree import Tree
from tests.support_tree import LIMIT


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with files of odd names, old enough to be trusted by their stat."""
    place = tmp_path / "watched"
    for name in ("a", "sub/b c", "sub/two\nlines", "é"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)
    return place


def settled(directory: Path) -> Tree:
    """A tree that need not read any file again."""
    tree, deadline = Tree(directory), time.monotonic() + LIMIT
    while not all(file.settled for file in tree.files.values()):
        assert time.monotonic() < deadline
        tree.scan()
    return tree


def test_a_start_over_an_unchanged_tree_reads_no_file(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept is what stands there, and no file is opened; of one that has changed, that one is."""
    tree, index = settled(directory), Index(tmp_path / "state", directory)
    index.save(tree.files)
    (directory / "a").write_text("other")
    opened: list[str] = []
    real = Place.open

    def noted(place: Place, name: str) -> BinaryIO:
        opened.append(name)
        return real(place, name)

    monkeypatch.setattr(Place, "open", noted)
    again = Tree(directory, remembered=index.load())
    assert opened == ["a"]
    assert again.files["é"] == tree.files["é"]
    assert again.files.keys() == tree.files.keys()
    assert again.files["a"] != tree.files["a"]


def test_what_is_not_settled_is_not_kept(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stat that could hide another change is no reason to believe a hash later."""
    tree, index = settled(directory), Index(tmp_path / "state", directory)
    monkeypatch.setattr(hashing, "FRESH", 60 * 10**9)  # so shortly before is whatever this machine takes
    (directory / "a").write_text("just now")
    tree.scan()
    assert not tree.files["a"].settled
    index.save(tree.files)
    assert index.load().keys() == tree.files.keys() - {"a"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "not ours", "no UTF-8"])
def test_what_is_no_whole_index_is_ignored_and_said(
    damage: str, directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file cut short, changed, of another directory or of another kind is one line, and every file is read."""
    index = Index(tmp_path / "state", directory)
    index.save(settled(directory).files)
    data = bytearray(index.file.read_bytes())
    if damage == "cut":
        del data[-100:]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "foreign":
        other = tmp_path / "other"
        other.mkdir()
        Index(index.file, other).save({})
        data = bytearray(index.file.read_bytes())
    else:
        data = bytearray({"empty": b"", "not ours": b"[user]\n" * 100, "no UTF-8": b"\xff" * 500}[damage])
    index.file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert index.load() == {}
    assert len(caplog.messages) == 1
    assert "is no use" in caplog.messages[0]


def test_an_index_that_is_not_there_is_empty(directory: Path, tmp_path: Path) -> None:
    """The first start has nothing to remember, and says nothing."""
    assert Index(tmp_path / "state", directory).load() == {}


@pytest.mark.parametrize("where", ["watched/state", "watched/sub/state", "link/state", "none/state"])
def test_a_place_that_could_not_be_is_refused(where: str, directory: Path, tmp_path: Path) -> None:
    """Within the directory, also through a link, it would be announced; without a directory it cannot be kept."""
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(ValueError, match="state"):
        Index(tmp_path / where, directory)


def test_an_index_that_cannot_be_written_leaves_the_one_before(directory: Path, tmp_path: Path) -> None:
    """It is written beside, and takes the old one's place only when it is whole."""
    index = Index(tmp_path / "state", directory)
    index.save(settled(directory).files)
    before = index.file.read_bytes()
    beside = tmp_path / f"state.{os.getpid()}"
    beside.mkdir()
    with pytest.raises(OSError, match="directory"):
        index.save({})
    shutil.rmtree(beside, ignore_errors=True)
    assert index.file.read_bytes() == before


def test_the_name_of_a_directory_outlives_restarts(directory: Path, tmp_path: Path) -> None:
    """It is kept at once, with the hashes and without; another index has another, and so has one that is no use."""
    first = Index(tmp_path / "index", directory)
    assert first.load() == {}
    again = Index(tmp_path / "index", directory)  # killed before it kept a hash
    again.load()
    assert again.source == first.source
    again.save(Tree(directory).files)
    third = Index(tmp_path / "index", directory)
    third.load()
    assert third.source == first.source
    other = Index(tmp_path / "other", directory)
    other.load()
    assert other.source != first.source
