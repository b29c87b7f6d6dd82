"""What the tests of the file service share: a directory, a client of a server that serves it, and a watcher's look."""

import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from servers.background import serve
from servers.feed import Feed
from servers.file_updates import create_app
from servers.tree import Tree
from tests.support import http


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with two files."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve() / "watched"
        (path / "a").mkdir(parents=True)
        (path / "a" / "b.csv").write_text("hello")
        (path / "empty").touch()
        yield path


@contextlib.asynccontextmanager
async def served(directory: Path, feed: Feed | None = None, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that has taken its first look at a directory."""
    with serve(create_app(feed or Feed(epoch="e"), Tree(directory), **options)) as server:
        async with http(server) as client:
            yield client


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def rescan(feed: Feed, tree: Tree) -> None:
    """What watch() does with a hint."""
    for edit in tree.scan():
        known = {"size": edit.size, "sha256": edit.sha256, "mtime": edit.mtime, "executable": edit.executable}
        feed.publish(edit.path, edit.change, **known)  # type: ignore[arg-type]
