"""Tests of the root conftest.py: what nbval lets pass must fail, and nothing may be skipped on CI.

Tiny notebooks are written to a temporary folder, and one pytest process with this repository's settings runs them all.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 300  # seconds for the one run of pytest, which takes about 12
pytestmark = pytest.mark.timeout(LIMIT + 20)

# name of the notebook -> its cells in order: source, tags, and how each of them must end
Cells = list[tuple[str, list[str], str]]

NOTEBOOKS: dict[str, Cells] = {
    "good": [
        ("import asyncio\nprint('to stdout')", [], "PASSED"),
        ("async def fails():\n    raise ValueError('seen')", [], "PASSED"),
        ("task = asyncio.create_task(fails())", [], "PASSED"),
        ("try:\n    await task\nexcept ValueError:\n    pass", [], "PASSED"),
        ("1 / 0", ["raises-exception"], "PASSED"),
        ("assert True", [], "PASSED"),
    ],
    "bad": [
        ("assert False", [], "FAILED"),
        ("import sys\nprint('to stderr', file=sys.stderr)", [], "FAILED"),
        ("import warnings\nwarnings.warn('a warning')", [], "FAILED"),
        ("%nosuchmagic\nraise TypeError('never reached')", [], "FAILED"),
        ("1 + 1", ["raises-exception"], "FAILED"),
        (
            "import threading\nthread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()",
            [],
            "FAILED",
        ),
        ("async def fails():\n    raise ValueError('unseen')", [], "PASSED"),
        ("import asyncio, gc\nlost = asyncio.ensure_future(fails())\nawait asyncio.sleep(0)", [], "PASSED"),
        ("del lost\n_ = gc.collect()", [], "FAILED"),
        ("asyncio.get_running_loop().call_soon(lambda: 1 / 0)\nawait asyncio.sleep(0)", [], "FAILED"),
        ("assert True", [], "PASSED"),
    ],
    # the output of a task belongs to the cell that made it, also when that cell is over
    "late": [
        (
            "import asyncio, sys\n"
            "go = asyncio.Event()\n"
            "async def complain():\n"
            "    await go.wait()\n"
            "    print('to stderr', file=sys.stderr)\n"
            "task = asyncio.create_task(complain())",
            [],
            "PASSED",
        ),
        ("go.set()\nawait task", [], "FAILED"),
    ],
    "kept": [
        ("import asyncio\nasync def fails():\n    raise ValueError('kept')", [], "PASSED"),
        ("kept = asyncio.create_task(fails())\nawait asyncio.sleep(0)", [], "PASSED"),
        ("assert True", [], "PASSED"),
    ],
    "dead": [
        ("import os\nos._exit(1)", [], "FAILED"),
        ("assert True", [], "FAILED"),
    ],
    "once": [
        ("assert 'ran' not in globals()", [], "PASSED"),
        ("ran = True", [], "PASSED"),
    ],
    "solutions/once": [
        ("assert 'ran' not in globals()", [], "PASSED"),
        ("ran = True", [], "PASSED"),
    ],
    "claims": [
        ("assert 1 < 2\nassert 2 < 3", [], "PASSED"),
        ("def claims(table):\n    if not table['looked at'][0]:\n        raise AssertionError", [], "PASSED"),
        ("claims({'looked at': (True, 1), 'overlooked': (True, 2)})", [], "PASSED"),
    ],
}

SKIPS = """
import pytest

def test_skips() -> None:
    pytest.skip("nothing to run")
"""

SKIPS_WHOLE = """
import pytest

pytest.importorskip("no_such_module")
"""


def notebook(cells: Cells) -> dict[str, Any]:
    code: dict[str, Any] = {"cell_type": "code", "execution_count": None, "outputs": []}
    return {
        "cells": [
            code | {"id": f"cell-{number}", "metadata": {"tags": tags}, "source": source}
            for number, (source, tags, _) in enumerate(cells)
        ],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outcomes of every item ("FAILED", "PASSED ERROR", ...) by its name, as a run on CI gives them."""
    folder = tmp_path_factory.mktemp("holes")
    (folder / "solutions").mkdir()
    for name, cells in NOTEBOOKS.items():
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook(cells)), encoding="utf-8")
    (folder / "test_skips.py").write_text(SKIPS, encoding="utf-8")
    (folder / "test_skips_whole.py").write_text(SKIPS_WHOLE, encoding="utf-8")
    shutil.copy(ROOT / "conftest.py", folder)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir=.", ".", "-q", "-rA"]
    done = subprocess.run(
        [*command, "--color=no", "--show-capture=no", "--continue-on-collection-errors", "-p", "no:cacheprovider"],
        cwd=folder,
        env=os.environ | {"CI": "true", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        outcome, _, rest = line.partition(" ")
        if outcome in {"PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS"}:
            name = rest.split(" - ")[0]
            found[name] = f"{found[name]} {outcome}" if name in found else outcome
    assert done.returncode == 1, done.stdout + done.stderr
    return found


DIES = """
import itertools, os
import nbval.kernel

start, count = nbval.kernel.start_new_kernel, itertools.count(1)

def start_new_kernel(*args, **kwargs):
    if next(count) <= {deaths}:
        kwargs["env"] = os.environ | {{"PYTHONHOME": "/nowhere"}}
    return start(*args, **kwargs)

nbval.kernel.start_new_kernel = start_new_kernel
"""


@pytest.mark.parametrize(("deaths", "status"), [(1, 0), (99, 1)])
def test_a_kernel_that_dies_at_its_start_is_started_again(deaths: int, status: int, tmp_path: Path) -> None:
    """One that dies once costs nothing; one that dies each time fails the notebook, and does not go on for ever."""
    (tmp_path / "good.ipynb").write_text(json.dumps(notebook(NOTEBOOKS["good"])), encoding="utf-8")
    (tmp_path / "dies.py").write_text(DIES.format(deaths=deaths), encoding="utf-8")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir=.", "good.ipynb"]
    done = subprocess.run(
        [*command, "-n0", "-p", "dies", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_nbval_lets_pass_fails(name: str, outcomes: dict[str, str]) -> None:
    """A cell that fails in silence fails its test, its neighbours do not, and a notebook without fault passes."""
    expected = {f"{name}.ipynb::Cell {number}": end for number, (_, _, end) in enumerate(NOTEBOOKS[name])}
    assert {item: outcomes.get(item) for item in expected} == expected


def test_loss_shows_when_the_notebook_ends(outcomes: dict[str, str]) -> None:
    """A failed task that the notebook keeps and never awaits is an error of its last cell."""
    assert outcomes["kept.ipynb::Cell 2, second run"] == "PASSED ERROR"


def test_second_run_passes(outcomes: dict[str, str]) -> None:
    """On CI every cell of a notebook without fault runs a second time in the same kernel and passes."""
    again = [f"good.ipynb::Cell {number}, second run" for number in range(len(NOTEBOOKS["good"]))]
    assert [outcomes.get(item) for item in again] == ["PASSED"] * len(again)


def test_second_run_fails_on_what_the_first_left(outcomes: dict[str, str]) -> None:
    """On CI a notebook that cannot run a second time in its kernel fails."""
    assert outcomes["once.ipynb::Cell 0, second run"] == "FAILED"


def test_a_solution_runs_once(outcomes: dict[str, str]) -> None:
    """A solution, where nobody goes on working, runs once on CI, too."""
    assert not [item for item in outcomes if item.startswith("solutions") and "second run" in item]


@pytest.mark.parametrize(
    ("claim", "end"),
    [("0, claim 1", "PASSED"), ("0, claim 2", "PASSED"), ("2, claim 1", "PASSED"), ("2, claim 2", "FAILED")],
)
def test_a_claim_that_lets_its_opposite_pass_fails(claim: str, end: str, outcomes: dict[str, str]) -> None:
    """Each claim is turned round once the notebook has run; one that holds even so is none."""
    assert outcomes[f"claims.ipynb::Cell {claim} turned round"] == end


@pytest.mark.parametrize(("item", "end"), [("test_skips.py::test_skips", "FAILED"), ("test_skips_whole.py", "ERROR")])
def test_skipping_fails_on_ci(item: str, end: str, outcomes: dict[str, str]) -> None:
    """On CI a test that skips itself fails, and so does a module that skips all of its tests."""
    assert outcomes.get(item) == end
