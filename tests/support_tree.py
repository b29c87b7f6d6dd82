"""What the tests of a tree and of its watch share: a directory, what stands in it, and what may be done to it."""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from servers.tree import Edit, Tree

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
    """Do the edits to a model of the directory. Each must fit: added is new, modified or deleted was there."""
    for edit in edits:
        if edit.change == "deleted":
            assert (edit.size, edit.sha256) == (None, None)
            del model[edit.path]
        else:
            assert (edit.path in model) == (edit.change == "modified")
            model[edit.path] = edit.size, edit.sha256


def told(edits: Iterable[Edit]) -> list[tuple[str, str]]:
    return [(edit.change, edit.path) for edit in edits]


@contextlib.contextmanager
def a_directory() -> Iterator[Path]:
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


def known(tree: Tree) -> State:
    """What a tree knows."""
    return {path: (file.size, file.sha256) for path, file in tree.files.items()}


def in_bytes(directory: Path, name: bytes) -> str:
    """A name of these bytes in the directory, as the system's calls take it."""
    return os.fsdecode(os.fsencode(directory) + b"/" + name)
