"""Tests of binder/ as far as they go without a container engine.

repo2docker prints the Dockerfile that Binder would build, and ships the list of packages that Binder's image holds.
"""

import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHON = (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")

PIN = runpy.run_path(str(ROOT / ".ci" / "pin"))


@pytest.fixture(scope="module")
def dockerfile() -> str:
    """What Binder would build, as repo2docker prints it; Binder's user is jovyan, 1000."""
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "--user-id=1000", "--user-name=jovyan"]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert f"conda environment for python={PYTHON}" in done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "COPY --chown=1000:1000 src/ ${REPO_DIR}/",
        'RUN ${KERNEL_PYTHON_PREFIX}/bin/pip install --no-cache-dir -r "binder/requirements.txt"',
        "RUN ./binder/postBuild",
    ],
)
def test_dockerfile(line: str, dockerfile: str) -> None:
    """Binder's image gets the repository, its requirements by pip, and what postBuild adds."""
    assert line in dockerfile.splitlines()


def test_the_package_itself_is_installed() -> None:
    """Binder installs the package in place, as pinned: with a binder/ folder it would not look at pyproject.toml."""
    wanted = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8")
    assert wanted == "-c constraints.txt\n-e .\n"


def test_python_is_one_of_ours() -> None:
    """Binder's Python is one that the package is made for."""
    assert f"Programming Language :: Python :: {PYTHON}" in PYPROJECT["classifiers"]


def test_nothing_in_the_image_is_replaced() -> None:
    """What Binder's image holds is new enough for every dependency, so that pip leaves the running JupyterLab alone."""
    image = {name: Version(version) for name, version in PIN["image"]().items()}
    wanted = {canonicalize_name(each.name): each.specifier for each in map(Requirement, PYPROJECT["dependencies"])}
    held = wanted.keys() & image.keys()
    assert {"jupyterlab", "ipywidgets", "httpx"} <= held
    assert {name: str(image[name]) for name in held if image[name] not in wanted[name]} == {}


def test_pins_are_renewed() -> None:
    """What Binder and the container install is what .ci/pin makes of the tested releases: after a change, run it."""
    for path, text in PIN["files"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run .ci/pin"


@pytest.mark.parametrize("name", ["binder/constraints.txt", "servers/requirements.txt"])
def test_pins_are_within_our_bounds(name: str) -> None:
    """Every pinned release is one that pyproject.toml allows, and Binder's are those that its image holds already."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(each): Version(version) for each, _, version in (line.partition("==") for line in lines)
            if version}  # fmt: skip
    wanted = {canonicalize_name(each.name): each.specifier for each in map(Requirement, PYPROJECT["dependencies"])}
    assert {"uvicorn", "fastapi", "watchfiles"} <= pins.keys()
    if name.startswith("binder"):
        assert wanted.keys() <= pins.keys()
        image = PIN["image"]()
        assert {each: str(pins[each]) for each in pins.keys() & image.keys()} == {
            each: image[each] for each in pins.keys() & image.keys()
        }
    assert {each: str(pins[each]) for each in pins.keys() & wanted.keys() if pins[each] not in wanted[each]} == {}
