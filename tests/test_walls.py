"""The product has walls: what `lab.mirror` and `lab.clients` load when they run for real, and what that takes."""

import asyncio
import json
import re
import signal
import sys
from pathlib import Path

import pytest

from servers import file_updates, models
from servers.background import serve
from servers.feed import Feed
from servers.tree import Tree
from tests.support import PATIENCE, command, ended, on_a_loop
from tests.support_mirror import write

TOKEN = "a-token-of-many-characters"
OTHERS = {"fastapi", "starlette", "pydantic", "prometheus_client", "numpy", "matplotlib", "IPython", "uvicorn"}
MOST = 42  # MiB; 36 and 34 are measured, and 31 at the start; 68 and 46 were taken before there were walls

# run in the process itself: writes down, at its end, what it has loaded and the most memory that it held
CONFESSION = """
import atexit, json, pathlib, sys
def confess():
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    pathlib.Path({file!r}).write_text(json.dumps([sorted(sys.modules), int(status["VmHWM"].split()[0]) // 1024]))
atexit.register(confess)
""".strip()


def check(file: Path) -> None:
    """What the process has confessed is within the walls."""
    modules, held = json.loads(file.read_text())
    assert "lab.clients.models" in modules
    assert not OTHERS & {module.partition(".")[0] for module in modules}
    wings = {module.split(".")[1] for module in modules if module.startswith("lab.")}
    assert wings <= {"clients", "mirror"}
    rooms = {module for module in modules if module.startswith("servers.")}
    assert rooms <= {"servers.arguments", "servers.feed", "servers.hashing", "servers.ignore", "servers.places"}
    assert held < MOST


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what it held")
def test_the_mirror_loads_no_server_and_no_bench(tmp_path: Path) -> None:
    """Listing, fetching and following, with a token, a mirror needs neither a web framework nor numpy nor IPython."""
    write(tmp_path / "dir", "a", "alpha")
    write(tmp_path, "token", TOKEN)

    @on_a_loop
    async def body() -> None:
        feed, tree = Feed(), Tree(tmp_path / "dir")
        tree.scan()
        with serve(file_updates.create_app(feed, tree, token=TOKEN)) as server:
            options = (server.url, tmp_path / "copy", "--token-file", tmp_path / "token")
            preamble = CONFESSION.format(file=str(tmp_path / "confession"))
            async with command("lab.mirror", *options, preamble=preamble) as process:
                assert process.stdout is not None
                assert b"fetched" in await asyncio.wait_for(process.stdout.readline(), PATIENCE)
                write(tmp_path / "dir", "b", "beta")
                for edit in tree.scan():
                    feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)
                assert b"fetched" in await asyncio.wait_for(process.stdout.readline(), PATIENCE)
                process.send_signal(signal.SIGINT)
                status, _, said = await ended(process)
                assert status == 0
                assert re.fullmatch(r"(INFO up to date: .+\n)?", said)

    body()
    check(tmp_path / "confession")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what it held")
@pytest.mark.parametrize("model", ["short-polling", "long-polling", "websocket", "sse"])
def test_a_client_loads_no_server_and_no_bench(tmp_path: Path, model: str) -> None:
    """A client that prints updates needs neither a web framework nor numpy nor IPython."""

    @on_a_loop
    async def body() -> None:
        feed = Feed(epoch="e")
        feed.publish("a")
        with serve(models.model(model).create_app(feed)) as server:
            preamble = CONFESSION.format(file=str(tmp_path / "confession"))
            async with command("lab.clients", model, server.url, "--after", "0", preamble=preamble) as process:
                assert process.stdout is not None
                assert b"#1" in await asyncio.wait_for(process.stdout.readline(), PATIENCE)
                process.send_signal(signal.SIGINT)
                assert (await ended(process))[::2] == (0, "")

    body()
    check(tmp_path / "confession")
