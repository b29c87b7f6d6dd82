"""Tests of the edited directory and its reader: the plan can be repeated, the original remembers, halves are seen."""

import asyncio
import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.bench.edits import BURST, FileEdit, Look, NameReader, Original, Reader, differing, never_whole, plan, snapshot
from tests.support import on_a_loop, until


def digest(content: bytes) -> str:
    """The SHA-256 of a content, in hex."""
    return hashlib.sha256(content).hexdigest()


def test_a_plan_is_repeatable_and_has_every_kind_of_edit() -> None:
    """The same seed gives the same plan, another seed another one; kinds and bursts are all there, in order of time."""
    some = plan(300, seed=1)
    assert some == plan(300, seed=1)
    assert some != plan(300, seed=2)
    assert len(some.edits) == 300
    assert {edit.kind for edit in some.edits} == {"create", "modify", "same size", "rename", "delete"}
    assert [edit.at for edit in some.edits] == sorted(edit.at for edit in some.edits)
    assert max(Counter(edit.path for edit in some.edits if edit.kind == "modify").values()) >= BURST


@on_a_loop
async def test_the_original_is_edited_as_planned_and_remembers(tmp_path: Path) -> None:
    """Carried out, a plan leaves the directory as the history says, at the end and at the start."""
    some = plan(200, files=20, seconds=0.2, seed=3)
    original = Original(tmp_path / "original", some.files)
    start = original.changes[-1].at
    await original.carry_out(some.edits)
    end = original.changes[-1].at
    assert snapshot(original.directory) == original.at(end)
    assert original.at(start) == {path: digest(content) for path, content in some.files.items()}
    assert original.at(start) != original.at(end)


def test_a_modification_of_the_same_size_keeps_the_size_and_changes_the_content(tmp_path: Path) -> None:
    """An edit of the kind "same size" writes as many other bytes as the file has then."""
    some = plan(300, seed=1)
    original = Original(tmp_path / "original", some.files)
    kept = 0
    for edit in some.edits:
        before = (original.directory / edit.path).read_bytes() if edit.kind == "same size" else b""
        original.make(edit)
        if edit.kind == "same size":
            assert len(edit.content) == len(before)
            assert edit.content != before
            kept += 1
    assert kept > 10


@on_a_loop
async def test_a_reader_sees_a_half_that_was_there_for_a_moment(tmp_path: Path) -> None:
    """A copy that is written in place shows the reader a content that the original never had."""
    original = Original(tmp_path / "original", {"a/b.txt": b"whole"})
    copies = [tmp_path / name for name in ("one", "two")]
    for copy in copies:
        (copy / "a").mkdir(parents=True)
        (copy / "a" / "b.txt").write_bytes(b"whole")
    with Reader(copies) as reader:
        await until(lambda: len(reader.looks) > 2)
        assert never_whole(original, reader.looks) == set()
        (copies[1] / "a" / "b.txt").write_bytes(b"who")
        await until(lambda: ("a/b.txt", digest(b"who")) in never_whole(original, reader.looks))
        (copies[1] / "a" / "b.txt").write_bytes(b"whole")
    assert never_whole(original, reader.looks) <= {("a/b.txt", digest(half)) for half in (b"who", b"")}
    assert {look.copy for look in reader.looks} == {0, 1}


@on_a_loop
async def test_a_reader_of_names_overlooks_nothing_that_moves_on(tmp_path: Path) -> None:
    """A file that is linked to the later directory before it leaves the earlier one is there in each look."""
    old, new = tmp_path / "old" / "a", tmp_path / "new" / "a"
    for here in (old, new):
        here.mkdir(parents=True)
    for number in range(20):
        (old / f"{number}").write_text("a")
    with NameReader(tmp_path / "old", tmp_path / "new") as reader:
        for number in range(20):
            (new / f"{number}").hardlink_to(old / f"{number}")
            looks = reader.looks
            await until(lambda: reader.looks > looks)  # noqa: B023
            (old / f"{number}").unlink()
        assert reader.fewest == 20
        (new / "0").rename(tmp_path / "elsewhere")
        await until(lambda: reader.fewest == 19)
    assert reader.looks > 20
    assert reader.rate > 0


def test_what_differs_is_counted_by_path_against_the_original_of_that_moment(tmp_path: Path) -> None:
    """A changed, a missing and a superfluous file count one each, and only as long as they differ."""
    original = Original(tmp_path / "original", {"same": b"s", "changed": b"old"})
    before = original.changes[-1].at
    original.make(FileEdit(0.0, "modify", "changed", b"new"))
    original.make(FileEdit(0.0, "create", "missing", b"m"))
    original.make(FileEdit(0.0, "rename", "same", to="moved"))
    after = original.changes[-1].at
    copy = {"same": digest(b"s"), "changed": digest(b"old")}
    looks = [Look(before, 0, copy), Look(after, 0, copy)]
    assert [wrong for *_, wrong in differing(original, looks)] == [0, 4]


def test_a_snapshot_leaves_hidden_names_out(tmp_path: Path) -> None:
    """Names that begin with a dot, and what is below them, are no part of a snapshot."""
    (tmp_path / ".state").mkdir()
    (tmp_path / ".state" / "part").write_bytes(b"x")
    (tmp_path / ".part").write_bytes(b"x")
    (tmp_path / "seen").write_bytes(b"x")
    assert snapshot(tmp_path) == {"seen": digest(b"x")}


def test_a_snapshot_of_what_changes_has_what_stays(tmp_path: Path) -> None:
    """Files and directories that come and go while it looks are there or not; the others are."""
    for number in range(20):
        (tmp_path / f"stays {number}").mkdir()
        (tmp_path / f"stays {number}" / "a").write_bytes(b"a")
    enough = threading.Event()

    def come_and_go() -> None:
        while not enough.is_set():
            (tmp_path / "goes" / "b").mkdir(parents=True)
            (tmp_path / "goes" / "b" / "c").write_bytes(b"c")
            shutil.rmtree(tmp_path / "goes")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        looks = [snapshot(tmp_path) for _ in range(200)]
    finally:
        enough.set()
        thread.join()
    assert all(look.items() >= {f"stays {number}/a": digest(b"a") for number in range(20)}.items() for look in looks)


@on_a_loop
async def test_late_edits_are_made_at_once(tmp_path: Path) -> None:
    """An edit whose time has passed is made all the same, none is left out."""
    original = Original(tmp_path / "original", {})
    async with asyncio.timeout(20):
        await original.carry_out(FileEdit(-1.0, "create", f"{n}", b"x") for n in range(5))
    assert len(snapshot(original.directory)) == 5


def test_nobody_can_see_an_edit_before_its_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment of an edit is noted before the edit can be seen, whatever comes between."""
    original = Original(tmp_path / "original", {"kept": b"k", "moved": b"m", "gone": b"g"})
    noted = list[int]()

    def spied(act: Callable[..., object]) -> Callable[..., object]:
        def spy(*arguments: object) -> object:
            noted.append(len(original.changes))
            return act(*arguments)

        return spy

    for name in ("replace", "rename", "unlink"):
        monkeypatch.setattr(Path, name, spied(getattr(Path, name)))
    original.write("kept", b"other")
    original.rename("moved", "away")
    original.delete("gone")
    assert noted == [4, 6, 7]
