"""Tests of binder/ as far as they go without a container engine.

repo2docker prints the Dockerfile that Binder would build, and ships the list of packages that Binder's image holds.
"""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHON = (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")


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
    """Binder installs the package in place: with a binder/ folder it would not look at pyproject.toml by itself."""
    assert (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").split("\n") == ["-e .", ""]


def test_python_is_one_of_ours() -> None:
    """Binder's Python is one that the package is made for."""
    assert f"Programming Language :: Python :: {PYTHON}" in PYPROJECT["classifiers"]


def test_nothing_in_the_image_is_replaced() -> None:
    """What Binder's image holds is new enough for every dependency, so that pip leaves the running JupyterLab alone."""
    # located, not imported: its import raises a deprecation warning
    conda = distribution("jupyter-repo2docker").locate_file("repo2docker/buildpacks/conda")
    lock = Path(str(conda), f"environment.py-{PYTHON}-linux-64.lock").read_text(encoding="utf-8")
    packages = re.findall(r"^https://\S+/(\S+)-([^-\s]+)-[^-\s]+#", lock, re.MULTILINE)
    image = {canonicalize_name(name): Version(version) for name, version in packages}
    wanted = {canonicalize_name(each.name): each.specifier for each in map(Requirement, PYPROJECT["dependencies"])}
    held = wanted.keys() & image.keys()
    assert {"jupyterlab", "ipywidgets", "httpx"} <= held
    assert {name: str(image[name]) for name in held if image[name] not in wanted[name]} == {}
