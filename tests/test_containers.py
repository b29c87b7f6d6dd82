"""The file service's Containerfile and the dev container, as far as they go without a container engine.

The service is run by the file's own command, in a Python that cannot import anything but what the file installs.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import httpx
import pytest
from packaging.utils import canonicalize_name

from servers.__main__ import parser

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "servers"  # what is built from
LINES = (FOLDER / "Containerfile").read_text(encoding="utf-8").splitlines()
STEPS = [tuple(line.split(maxsplit=1)) for line in LINES if line and not line.startswith("#")]
# refuses what no requirement brings, as a fresh image would
BLOCK = """
import runpy, sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

ABSENT = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Absent())
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def step(word: str) -> list[str]:
    """What follows this instruction, wherever it stands."""
    return [rest for name, rest in STEPS if name == word]


def installed() -> set[str]:
    """The canonical names of what the image gets."""
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}


def entry() -> list[str]:
    """The command that the container runs."""
    [command] = step("ENTRYPOINT")
    words: list[str] = json.loads(command)
    return words


def test_what_is_copied_is_there() -> None:
    """Every file that is copied into the image exists, and the code lands where the command finds it."""
    copies = [line.split() for line in step("COPY")]
    assert [target for _, target in copies] == ["/tmp/requirements.txt", "/opt/servers"]
    assert all((FOLDER / source).exists() for source, _ in copies)
    assert step("WORKDIR") == ["/opt"]
    assert (FOLDER / "__main__.py").is_file()


def test_the_base_is_a_python_of_ours() -> None:
    """The image's Python is the one that the pins are made for."""
    binder = (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").strip()
    assert step("FROM") == [f"python:{binder.removeprefix('python-')}-slim"]


def test_the_command_is_one_of_ours() -> None:
    """The command line takes the container's command, which keeps its state in one volume and watches the other."""
    assert entry()[:3] == ["python", "-m", "servers"]
    options = parser().parse_args(entry()[3:])
    [volumes] = step("VOLUME")
    assert json.loads(volumes) == [str(options.watch), str(options.state.parent)]
    assert [str(options.port)] == step("EXPOSE")
    assert (options.model, options.host) == ("file-updates", "0.0.0.0")
    assert parser().parse_args([*entry()[3:], "--allow-host", "files.example"]).allow_host == ["files.example"]


def test_it_is_nobody_and_stops_when_told() -> None:
    """The service does not run as root, its streams end on SIGTERM, and its health is asked at its own port."""
    assert step("USER") == ["10001:10001"]
    assert step("STOPSIGNAL") == ["SIGTERM"]
    [check] = step("HEALTHCHECK")
    assert f"http://127.0.0.1:{step('EXPOSE')[0]}/healthz" in check
    compile(json.loads(check.partition("CMD ")[2])[2], "health check", "exec")


def test_it_runs_on_what_is_installed(tmp_path: Path) -> None:
    """With no package but the installed ones the service starts, is healthy, serves a file, and ends on SIGTERM."""
    known = installed()
    absent = [module for module, owners in packages_distributions().items()
              if not known & {canonicalize_name(owner) for owner in owners}
              and module not in sys.stdlib_module_names and module != "servers"]  # fmt: skip
    assert {"numpy", "httpx", "redis", "IPython"} <= {*absent}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("one")
    shutil.copytree(FOLDER, tmp_path / "opt" / "servers", ignore=shutil.ignore_patterns("__pycache__"))
    places = {"/data": "data", "/state/index": "index"}
    words = [str(tmp_path / places[word]) if word in places else word for word in entry()[2:]]
    words[words.index("--port") + 1] = "0"
    words[words.index("--host") + 1] = "127.0.0.1"
    command = [sys.executable, "-c", BLOCK, ",".join(absent), *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    with subprocess.Popen(command, cwd=tmp_path / "opt", env=environment, text=True, stdout=-1, stderr=-1) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, (line, process.communicate(timeout=30))
            with httpx.Client(base_url=found[0], trust_env=False, timeout=30) as client:
                until_healthy(client)
                assert client.get("/files/a.txt").text == "one"
                assert client.post("/bundle", json={"paths": ["a.txt"]}).status_code == 200
                with client.stream("GET", "/events") as answer:
                    assert next(answer.iter_lines()).startswith("retry:")
                assert client.get("/metrics").status_code == client.get("/docs").status_code == 200
            process.send_signal(signal.SIGTERM)
            _, complaints = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, complaints) == (0, "")
    assert (tmp_path / "index").is_file()


def until_healthy(client: httpx.Client) -> None:
    """Return once the first look is over; each question is answered only after a while, so this does not spin."""
    for _ in range(600):
        if client.get("/healthz").status_code == 200:
            return
        client.get("/updates", params={"wait": "0.05"})
    pytest.fail("not healthy after many questions")


def test_dev_container() -> None:
    """The dev container's file is plain JSON; it installs the course where the README does, in tested releases."""
    told = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    command = told["postCreateCommand"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    install, _, pins = command.partition(" -c ")
    assert f"{install} && .venv/bin/jupyter lab" in readme
    assert (ROOT / pins).is_file()
    python = (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    assert f"python:{python}-" in told["image"]
