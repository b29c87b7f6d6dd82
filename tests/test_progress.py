"""The progress bar: there for a person who waits, nowhere else, and gone at the end."""

import asyncio
import importlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from lab.bench.progress import progress

module = importlib.import_module("lab.bench.progress")  # by its name: the wing hands on the function so named

CELL = """
import asyncio
import lab.bench.progress, sys
progress = sys.modules["lab.bench.progress"]
progress.WORTH_IT = 0.0
async with progress.progress(60, "waiting"):
    for _ in range(10):
        await asyncio.sleep(0.1)
"""


IN_VIRTUAL_TIME = """
import asyncio
import sys
import lab.bench.progress
from lab import virtual
progress = sys.modules["lab.bench.progress"]
async def main(net):
    async with progress.progress(60, "waiting"):
        await asyncio.sleep(60)
virtual.run_virtual(main)
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[BlockingKernelClient]:
    """A client of a fresh Jupyter kernel."""
    manager, client = start_new_kernel(kernel_name="python3")
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def outputs(kernel: BlockingKernelClient, *, allow_stdin: bool, cell: str = CELL) -> list[dict[str, Any]]:
    """The messages that running the cell publishes, for a front end that can answer questions or one that cannot."""
    messages: list[dict[str, Any]] = []
    reply = kernel.execute_interactive(cell, allow_stdin=allow_stdin, output_hook=messages.append, timeout=60)
    assert reply["content"]["status"] == "ok", reply["content"]
    return messages


def test_a_person_sees_a_bar(kernel: BlockingKernelClient) -> None:
    """In a notebook with a person before it the bar is drawn, moves and is closed; nothing goes to stderr."""
    messages = outputs(kernel, allow_stdin=True)
    shown = [m["content"] for m in messages if m["msg_type"] == "display_data"]
    assert any("application/vnd.jupyter.widget-view+json" in content["data"] for content in shown)
    states = [m["content"]["data"].get("state", {}) for m in messages if m["msg_type"] == "comm_msg"]
    assert any(isinstance(value := state.get("value"), float) and 0 < value < 60 for state in states)
    assert "comm_close" in {m["msg_type"] for m in messages}
    assert "stream" not in {m["msg_type"] for m in messages}


def test_a_machine_sees_nothing(kernel: BlockingKernelClient) -> None:
    """When the notebook is executed by a program, as nbval and nbconvert do, it leaves no output at all."""
    kinds = {message["msg_type"] for message in outputs(kernel, allow_stdin=False)}
    assert kinds <= {"status", "execute_input"}


def test_virtual_time_has_no_bar(kernel: BlockingKernelClient) -> None:
    """A virtual run draws none, not even before a person: the bar's thread would escape it."""
    kinds = {message["msg_type"] for message in outputs(kernel, allow_stdin=True, cell=IN_VIRTUAL_TIME)}
    assert kinds <= {"status", "execute_input"}


def test_at_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a notebook the bar needs a terminal; it is wiped away at the end."""

    async def wait() -> None:
        async with progress(60, "waiting"):
            await asyncio.sleep(0.1)

    monkeypatch.setattr(module, "WORTH_IT", 0.0)
    asyncio.run(wait())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    asyncio.run(wait())
    drawn = capsys.readouterr().err
    assert "waiting" in drawn
    *_, last, cursor = drawn.split("\r")
    assert last.strip() == cursor == "", "the line is empty again"


def test_what_is_short_needs_no_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seconds are not worth a bar, and the block's error passes through."""

    async def fail() -> None:
        async with progress(2.0, "waiting"):
            await asyncio.sleep(0.05)
            raise KeyError("inside")

    monkeypatch.setattr(module, "watched", lambda: True)
    with pytest.raises(KeyError, match="inside"):
        asyncio.run(fail())
    assert capsys.readouterr().err == ""


def test_the_bar_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is left early, also by an error, takes its bar with it at once."""

    async def fail() -> None:
        async with progress(60, "waiting"):
            await asyncio.sleep(0)
            raise KeyError("inside")

    monkeypatch.setattr(module, "watched", lambda: True)
    begin = time.perf_counter()
    with pytest.raises(KeyError, match="inside"):
        asyncio.run(fail())
    assert time.perf_counter() - begin < 30
