"""Tests of what pyproject.toml says of other people's releases, against what is installed, imported and tried.

Each bound stands once, in pyproject.toml: `.ci/quick lowest` takes the lower ones from there, and installs them.
"""

import ast
import importlib.metadata
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
DIRECT = RUNTIME + [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
QUICK = runpy.run_path(str(ROOT / ".ci" / "quick"))
LAZILY = ("redis", "brotli", "playwright", "nbformat", "nbclient", "nbconvert")
WHERE_ASKED_FOR = [Requirement(name) for name in LAZILY]
OURS = {"lab", "servers", "tests", "conftest"}


def lower_bound(requirement: Requirement) -> str:
    (low,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    return low


def pins(way: str) -> dict[str, Version]:
    each = [Requirement(line) for line in QUICK["pins"](way)]
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in each}


def test_the_lower_end_is_what_pyproject_says() -> None:
    """At the lower end pip is asked for every direct dependency in its lower bound, and no pin contradicts that."""
    asked = [Requirement(line) for line in QUICK["requirements"]("lowest")]
    assert [(each.name, each.extras) for each in asked] == [(each.name, each.extras) for each in DIRECT]
    assert [str(each.specifier) for each in asked] == [f"=={lower_bound(each)}" for each in DIRECT]
    assert not pins("lowest").keys() & {canonicalize_name(each.name) for each in DIRECT}
    assert pins("lowest").items() <= pins("pinned").items()


def test_the_newest_end_has_no_end() -> None:
    """For the newest releases no upper bound holds, and no pin: they are looked for beyond what was read."""
    asked = [Requirement(line) for line in QUICK["requirements"]("newest")]
    assert [str(each.specifier) for each in asked] == [f">={lower_bound(each)}" for each in DIRECT]
    assert pins("newest") == {}


def test_what_is_pinned_is_allowed() -> None:
    """Every direct dependency is pinned in a release that its bounds admit."""
    pinned = pins("pinned")
    assert [str(each) for each in DIRECT if pinned[canonicalize_name(each.name)] not in each.specifier] == []


def test_ci_runs_at_the_lower_end() -> None:
    """`.ci/run` has the line that tries the lower bounds; the newest releases are tried by the clock, and by hand."""
    assert "python3 .ci/quick lowest\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "newest.yml").read_text(encoding="utf-8")
    assert "python3 .ci/quick newest\n" in workflow
    assert "schedule:" in workflow
    assert "workflow_dispatch:" in workflow


@pytest.mark.parametrize(
    ("failing", "status", "said"),
    [
        ({"a": "once", "b": "once"}, 0, "failed, and not again:\n    test_a.py::test\n    test_b.py::test\n"),
        ({"a": "once", "b": "always"}, 1, "once more: test_a.py test_b.py\n"),
        ({"a": "once", "b": "once", "c": "once"}, 1, ""),
    ],
    ids=["once", "again", "much"],
)
def test_what_failed_is_run_once_more_if_it_is_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: dict[str, str], status: int, said: str
) -> None:
    """What fails again fails, and so does much at once; a test that a busy machine broke is named."""
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_well.py").write_text("def test(): pass\n")
    for name, when in failing.items():
        flaky = "    there = Path(__file__).with_suffix('.ran')\n    first = not there.exists()\n    there.touch()\n"
        ends = "    assert not first\n" if when == "once" else "    raise AssertionError\n"
        (tmp_path / f"test_{name}.py").write_text(f"from pathlib import Path\n\ndef test():\n{flaky}{ends}")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it starts sooner without
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytest_here = [sys.executable, "-m", "pytest", "-q"]
    assert subprocess.run(pytest_here, cwd=tmp_path, capture_output=True, check=False).returncode == 1
    again = [sys.executable, str(ROOT / ".ci" / "once-more"), ".pytest_cache", *pytest_here]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout
    assert said in done.stdout


def imported(paths: Iterator[Path]) -> set[str]:
    """The top-level names of all modules that files import, wherever in the file."""
    names = set[str]()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    return names - sys.stdlib_module_names - OURS


def test_what_is_asked_for_lazily_has_a_bound() -> None:
    """What is taken in only where somebody asks for it is named in an extra, too."""
    assert {each.name for each in WHERE_ASKED_FOR} <= {each.name for each in DIRECT} - {each.name for each in RUNTIME}


@pytest.mark.parametrize(
    ("folders", "named"),
    [(["servers", "notebooks/lab"], RUNTIME + WHERE_ASKED_FOR), (["tests", ".ci"], DIRECT)],
    ids=["course", "tests"],
)
def test_what_is_imported_is_named(folders: list[str], named: list[Requirement]) -> None:
    """No module comes only because something else happens to bring it: whatever the code imports has a bound."""
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py") if file.parent.name != "benchmarks")
    owners = importlib.metadata.packages_distributions()
    names = {canonicalize_name(each.name) for each in named} | {"pydantic-core"}  # pydantic's, tied to its release
    assert {
        module for module in imported(files) if not names & {canonicalize_name(owner) for owner in owners[module]}
    } == set()
