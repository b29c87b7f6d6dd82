"""Tests of .ci/freshen on a notebook of two cells: what has changed is said, and what does not hold is refused."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.timeout(600)  # kernels are started again and again, on a machine that may be busy
FRESHEN = runpy.run_path(str(ROOT / ".ci" / "freshen"))
SOURCE = """from lab.figures import claims

claims({{"a poll is late": ({holds}, {late}), "the sun rises": (True, "in the east"), "{last}": (True, 1)}})"""


def freshen(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "freshen"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


def written(path: Path, *, holds: bool = True, late: int = 2, last: str = "said once") -> Path:
    """A notebook that claims so, executed as far as it goes; `edited` later it is another one with these outputs."""
    source = SOURCE.format(holds=holds, late=late, last=last)
    nbformat.write(new_notebook(cells=[new_code_cell(part) for part in source.split("\n\n")]), path)
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook with the outputs of an earlier run, in which the poll was 2 late."""
    path = written(tmp_path_factory.mktemp("course") / "tiny.ipynb")
    command = [sys.executable, str(ROOT / ".ci" / "execute-notebooks"), str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=250)
    return path


def edited(stored: Path, folder: Path, **changed: object) -> Path:
    """The stored notebook with its outputs, and with another source: the world has changed since it ran."""
    now = nbformat.read(written(folder / "tiny.ipynb", **changed), as_version=4)  # type: ignore[arg-type]
    for cell, old in zip(now.cells, nbformat.read(stored, as_version=4).cells, strict=True):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    nbformat.write(now, folder / "tiny.ipynb")
    return folder / "tiny.ipynb"


def test_what_has_changed_is_said(stored: Path, tmp_path: Path) -> None:
    """Other evidence, a new claim and one that is gone are a line each; the notebook itself stays as it is."""
    path = edited(stored, tmp_path, late=3, last="said anew")
    before = path.read_bytes()
    done = freshen("--here", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.strip() for line in done.stdout.splitlines()] == [
        "tiny.ipynb: every claim holds",
        "changed: a poll is late: 2 -> 3",
        "gone: said once (1)",
        "new: said anew (1)",
    ]
    assert path.read_bytes() == before


def test_a_claim_that_fails_is_refused(stored: Path, tmp_path: Path) -> None:
    """A claim that no longer holds is named with its evidence, and the exit status is 1."""
    done = freshen("--here", str(edited(stored, tmp_path, holds=False, late=9)))
    assert done.returncode == 1
    assert "tiny.ipynb: refused" in done.stderr
    assert "not so:" in done.stderr
    assert "a poll is late" in done.stderr
    assert "holds" not in done.stdout


@pytest.mark.parametrize("name", ["nowhere.ipynb", "README.md", "--hare"])
def test_what_is_no_notebook_is_refused(name: str) -> None:
    """A name that is no notebook's gets one line and exit status 2, and nothing is installed."""
    done = freshen(name)
    assert done.returncode == 2
    assert done.stderr.startswith(f"no notebook: {name}; usage:")
    assert done.stderr.count("\n") == 1


def test_pins_are_renewed() -> None:
    """The new releases stand between the comments; of the last lines stays what no environment shows."""
    old = "# A\n# B\nhttpx==0.1\nuvicorn==0.2\n# what builds the package\nhatchling==1\ntomlkit==2\n# lowest\npyee==3\n"
    new = FRESHEN["renewed"](old, ["hatchling==1.5", "httpx==0.3"])
    assert new == "# A\n# B\nhatchling==1.5\nhttpx==0.3\n# what builds the package\ntomlkit==2\n# lowest\npyee==3\n"
    assert FRESHEN["renewed"](new, ["hatchling==1.5", "httpx==0.3"]) == new


def test_no_pin_is_lost() -> None:
    """What is installed to be pinned has every extra that .ci/run installs."""
    commands = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run")]
    first = [re.findall(r'pip install -e "\.\[([\w,]+)\]"', text) for text in commands]
    assert {extra for found in first for extras in found for extra in extras.split(",")} == {
        *FRESHEN["EXTRAS"].split(",")
    }


def test_the_same_sentence_twice_is_two_claims() -> None:
    """Evidence of a sentence that is said in two cells is compared in order."""
    then, now = {"it holds": "1", "it holds (2)": "2"}, {"it holds": "1", "it holds (2)": "5"}
    assert list(FRESHEN["changes"](then, now)) == ["changed: it holds (2): 2 -> 5"]
    assert list(FRESHEN["changes"](then, then)) == []


def test_the_course_has_claims_to_compare() -> None:
    """Every notebook of the course stores claims that this command finds."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert FRESHEN["claims"](path), path.name
