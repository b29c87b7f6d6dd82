"""Tests of the doctor: each thing that it looks at is broken, for real where that harms nobody else, and it says so."""

import functools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lab import doctor
from lab.doctor import Finding, Report
from servers import hints
from tests.support import PATIENCE

only_posix = pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")


def told(check: Callable[[], Iterator[Finding]]) -> list[tuple[str, str]]:
    """State and line of what a check finds."""
    return [(finding.state, str(finding)) for finding in check()]


def run(*, preamble: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
    """The doctor as a process of its own, with this done first in it, and this in its environment."""
    code = f"import sys\n{preamble}\nfrom lab.doctor import main\nsys.exit(main([]))"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )


def test_a_machine_that_is_well() -> None:
    """Where the tests run nothing is wrong: every check has its lines, none is a fault, the exit status is 0."""
    done = run()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "note"}
    for begin in ("Python 3", "packages: all", "loopback, IPv4", "open files", "watching a directory", "proxy", "temp"):
        assert any(line.split(maxsplit=1)[1].startswith(begin) for line in lines), begin


def test_every_line_that_is_not_ok_says_what_to_do() -> None:
    """A note and a fault have their cure on the same line; a report with a fault is not well, one with notes is."""
    report = Report([Finding("ok", "a"), Finding("note", "b", "do this")])
    assert report.well
    assert repr(report) == "ok     a\nnote   b: do this"
    assert not Report([*report, Finding("fault", "c", "do that")]).well


def test_an_old_python() -> None:
    """A Python before the first that will do is a fault, told in one line though it lacks what all others have."""
    code = """if True:
        import sys
        sys.path[:0] = sys.argv[1:]
        sys.modules["tomllib"], sys.version_info = None, (3, 10, 12)
        from lab.doctor import main
        sys.exit(main([]))
    """
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-I", "-S", "-c", code, str(root / "notebooks"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.fullmatch(r"fault  Python \S+: the course needs 3\.11 or later: .*\n", done.stdout)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("httpx>=99", f"packages: httpx is {metadata.version('httpx')} (>=99 is needed): python -m pip install"),
        ("httpx>=0.1,<0.2", "(<0.2,>=0.1 is needed)"),
        ("no-such-package>=1", "packages: no-such-package is missing (>=1 is needed)"),
        ("pytest-xdist[psutil,setproctitle]", "packages: setproctitle is missing: python -m pip install"),
    ],
    ids=["older", "newer", "missing", "of an extra"],
)
def test_a_package_out_of_bounds(line: str, said: str) -> None:
    """A package that is absent, too old or too new is named, with its bounds and the command; no other is."""
    [(state, text)] = told(functools.partial(doctor.packages, ["httpx>=0.20", line]))
    assert state == "fault"
    assert said in text


def test_a_requirement_for_another_system_is_not_missed() -> None:
    """What is needed elsewhere only is not asked for here."""
    [(state, _)] = told(functools.partial(doctor.packages, ['no-such-package; sys_platform == "plan9"']))
    assert state == "ok"


def test_the_bounds_are_pyproject_s() -> None:
    """In a clone the bounds are those of pyproject.toml, whatever was installed once."""
    assert any(line.startswith("uvicorn[standard]>=") and "<" in line for line in doctor.bounds())


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a clone nor installed: the cure is to install it."""
    monkeypatch.setattr(doctor, "NAME", "no-such-course")
    assert told(doctor.packages) == [
        ("fault", "fault  packages: the course is not installed: python -m pip install -e . in its folder")
    ]


@only_posix
def test_few_open_files() -> None:
    """Fewer open files than a notebook's server and clients need are a fault, few are noted; both name `ulimit`."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))"
    done = run(preamble=limited.format(100))
    assert done.returncode == 1
    assert "fault  open files: 100 at once: `ulimit -n 1024`" in done.stdout
    done = run(preamble=limited.format(500))
    assert done.returncode == 0
    assert "note   open files: 500 at once: `ulimit -n 1024`" in done.stdout


@only_posix
@pytest.mark.parametrize(
    ("check", "said"),
    [
        ("loopback", "fault  loopback, IPv4: Too many open files: "),
        ("watching", "fault  watching a directory: "),
        ("temporary_directory", "fault  temporary directory: "),
    ],
)
def test_nothing_can_be_opened(check: str, said: str) -> None:
    """A socket, a directory or a file that cannot be opened is told as a fault of the thing that needs it."""
    code = f"""
import os, resource, tempfile
import servers.hints
from lab import doctor
tempfile.gettempdir()
first = os.dup(0)
os.close(first)
resource.setrlimit(resource.RLIMIT_NOFILE, (first, first))
print(*doctor.{check}(), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith(said)


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """That another program listens on the servers' usual port is noted, and that there is --port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(doctor, "PORT", other.getsockname()[1])
        [(state, text)] = told(doctor.port)
    assert state == "note"
    assert "--port" in text


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"])
def test_a_proxy_that_would_catch_the_loopback(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is noted, unless it is told not to be asked for this machine."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    assert [state for state, _ in told(doctor.proxy)] == ["ok"]
    monkeypatch.setenv(variable, "http://proxy.example:3128")
    [(state, text)] = told(doctor.proxy)
    assert state == "note"
    assert "127.0.0.1 and localhost: set NO_PROXY=" in text
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert "asked for localhost:" in told(doctor.proxy)[0][1]
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    assert [state for state, _ in told(doctor.proxy)] == ["ok"]


@only_posix
def test_a_temporary_directory_that_cannot_be_written_to() -> None:
    """Where no file can be written, as on a full disk, that is a fault, and TMPDIR is the way out."""
    done = run(preamble="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))")
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^fault  temporary directory: .*: set TMPDIR to", done.stdout, re.M), done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Jupyter has no place to write to, it would not start: a fault."""
    Path(tmp_path, "file").touch()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "file" / "runtime"))
    [(state, text)] = told(doctor.jupyter_directory)
    assert state == "fault"
    assert str(tmp_path / "file" / "runtime") in text
    assert text.endswith("set HOME to a directory that can be written to")


def test_few_inotify_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small number of directories that can be watched is noted, with the command that raises it."""
    (tmp_path / "max_user_watches").write_text("100\n")
    monkeypatch.setattr(hints, "LIMITS", tmp_path)
    found = told(doctor.watching)
    assert [state for state, _ in found] == ["ok", "note"]
    assert "100 directories at once: sudo sysctl fs.inotify.max_user_watches=" in found[1][1]


def test_windows_and_colab_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, and in Colab, a note says what is different; elsewhere there is none."""
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert told(doctor.surroundings) == []
    monkeypatch.setattr(sys, "platform", "win32")
    [(state, text)] = told(doctor.surroundings)
    assert state == "note"
    assert ("as delays do" in text) == (sys.version_info < (3, 13))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-1")
    [(state, text)] = told(doctor.surroundings)
    assert (state, "no live page" in text) == ("note", True)


def test_colab_keeps_its_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Colab nobody is told to replace the IPython that its session runs on; what else is wanting is told."""
    wanted = ["ipython>=999", "jupyter-server-proxy>=999", "httpx>=999"]
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    assert len(told(functools.partial(doctor.packages, wanted))) == 3
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-1")
    [(state, text)] = told(functools.partial(doctor.packages, wanted))
    assert (state, "httpx" in text) == ("fault", True)


def test_colabs_cell_installs_what_colab_has_not() -> None:
    """The cell in notebooks/README.md brings all that the course needs, but what is Colab's own."""
    root = Path(__file__).resolve().parent.parent
    readme = (root / "notebooks" / "README.md").read_text(encoding="utf-8")
    line = next(line for line in readme.splitlines() if line.startswith("!pip install"))
    asked = [Requirement(word.strip('"')) for word in line.partition(" &&")[0].split()[5:]]
    service = (root / "servers" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    comes = {each.name for each in asked} | {name.partition("==")[0] for name in service}
    needed = {each.name: each for each in map(Requirement, doctor.bounds())}
    there = {"filelock", "numpy", "packaging", "tqdm"}
    assert {*needed} == comes & {*needed} | {*doctor.COLAB_OWN} | there
    assert all(each.specifier == needed[each.name].specifier for each in asked)


def test_programs_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program that only some chapters or tests use is noted where it is absent; on a Mac the cure is another."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(doctor, "SYSTEM_FOLDERS", "/nowhere")
    assert {state for state, _ in told(doctor.programs)} == {"note"}
    monkeypatch.setattr(sys, "platform", "darwin")
    assert all("brew install" in text for _, text in told(doctor.programs))


def test_it_needs_nothing_but_python() -> None:
    """The doctor speaks even where every other package is missing: it loads the standard library only."""
    code = "import sys; sys.path[:0] = sys.argv[1:]; from lab.doctor import main; main([])"
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-I", "-S", "-c", code, str(root / "notebooks"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert done.stderr == ""
    assert "fault  packages: packaging is missing: python -m pip install packaging" in done.stdout
    assert "ok     loopback, IPv4" in done.stdout
