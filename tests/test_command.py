"""Tests of `push-pull`: from a wheel, in an empty environment, in a folder that is not the repository.

    repository ── hatchling ─▶ wheel ── pip ─▶ empty environment ─▶ push-pull serve │ mirror │ follow │ doctor

Other people's packages are seen there where the tests have them; of the course there is what the wheel holds.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab.command import COMMANDS, main
from tests.support import PATIENCE, on_a_loop

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"
SENTENCE = re.compile(r"file-updates at (http://127\.0\.0\.1:\d+) \(Ctrl-C stops it\)\s+")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repository by the backend that is installed here, without an index."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-index", "--no-build-isolation", f"--wheel-dir={folder}"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", *options, str(ROOT)], timeout=100, check=True)
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path) -> Path:
    """An environment with nothing of the course but the wheel."""
    folder = wheel.parent / "environment"
    venv.create(folder, symlinks=sys.platform != "win32")
    python = str(folder / SCRIPTS / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={python}"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], timeout=100, check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    # a path, whose own .pth files are not obeyed: the editable install is not seen
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder


@contextlib.asynccontextmanager
async def push_pull(elsewhere: Path, *words: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """`push-pull` with these words, in the environment, until it ends or the block does."""
    process = await asyncio.create_subprocess_exec(
        elsewhere / SCRIPTS / "push-pull",
        *map(str, words),
        cwd=elsewhere,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(elsewhere: Path, *words: object) -> tuple[int | None, str, str]:
    """Exit status, stdout and stderr of `push-pull` with these words."""
    async with push_pull(elsewhere, *words) as process, asyncio.timeout(3 * PATIENCE):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def got(url: str, path: str) -> tuple[str, str]:
    """The head and the body of the answer to a GET of a client that knows nothing of the course."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE):
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head, body


def test_the_wheel_holds_what_the_repository_does(wheel: Path) -> None:
    """Every file of the servers and of the lab is in the wheel, pages included, and nothing else of the course."""
    rooms = [(ROOT, "servers"), (ROOT / "notebooks", "lab")]
    files = [(top, path) for top, room in rooms for path in (top / room).rglob("*") if path.is_file()]
    caches = {"__pycache__", ".ruff_cache", ".mypy_cache"}
    here = {path.relative_to(top).as_posix() for top, path in files if caches.isdisjoint(path.parts)}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert here == held
    assert "servers/pages/sse.html" in held


@on_a_loop
async def test_it_serves_mirrors_and_follows(elsewhere: Path, tmp_path: Path) -> None:
    """From the wheel alone a directory is served with its page, mirrored, and followed."""
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "a.txt").write_text("hello")
    async with push_pull(elsewhere, "serve", "file-updates", "--watch", watched, "--port", 0) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        async with asyncio.timeout(3 * PATIENCE):
            line = (await server.stdout.readline()).decode()
        match = SENTENCE.fullmatch(line)
        assert match, line or await server.stderr.read()
        url = match[1]

        head, body = await got(url, "/")
        assert " 200 " in head.splitlines()[0]
        for script in re.findall(r'<(?:script[^>]* src|link[^>]* href)="(?!data:)([^"]+)"', body):
            head, _ = await got(url, f"/{script}")
            assert " 200 " in head.splitlines()[0], script

        assert (await ended(elsewhere, "mirror", url, tmp_path / "copy", "--once"))[0] == 0
        assert (tmp_path / "copy" / "a.txt").read_text() == "hello"

        async with push_pull(elsewhere, "follow", "sse", url, "--after", "0") as follower:
            (watched / "b.txt").write_text("news")
            assert follower.stdout is not None
            async with asyncio.timeout(3 * PATIENCE):
                assert b"b.txt" in await follower.stdout.readline()


@on_a_loop
async def test_the_doctor_reads_the_bounds_of_the_wheel(elsewhere: Path) -> None:
    """Outside the repository the bounds come from the wheel's metadata, and what the tests run with is within them."""
    _, out, err = await ended(elsewhere, "doctor")
    assert err == ""
    assert re.search(r"^ok +packages: all \d\d are here", out, re.M), out


@on_a_loop
async def test_nothing_comes_from_the_repository(elsewhere: Path) -> None:
    """The environment's `lab` and `servers` are the wheel's own."""
    code = "import lab, servers; print(lab.__file__, servers.__file__)"
    python = str(elsewhere / SCRIPTS / "python")
    process = await asyncio.create_subprocess_exec(python, "-c", code, cwd=elsewhere, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert len(out.split()) == 2
    assert all(Path(name).is_relative_to(elsewhere) for name in out.decode().split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command explains itself, under the name that it was called by."""
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: push-pull {command} ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "push-pull: the following arguments are required: COMMAND"),
        (["serv"], "push-pull: argument COMMAND: invalid choice: 'serv'"),
        (["mirror", "http://x"], "push-pull mirror: the following arguments are required: COPY"),
        (["serve", "smoke"], "push-pull serve: argument MODEL: invalid choice: 'smoke'"),
        (["doctor", "all"], "push-pull doctor: unrecognized arguments: all"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not understood is told in one line, with exit status 2."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(said)


def test_a_command_loads_only_its_own() -> None:
    """`push-pull mirror` loads what `python -m lab.mirror` does and one small module: no framework, no numpy."""
    heavy = {"fastapi", "starlette", "uvicorn", "pydantic", "numpy", "matplotlib", "IPython"}
    code = f"""
import contextlib, sys
from lab.command import main
with contextlib.suppress(SystemExit):
    main(["mirror", "--help"])
print(sorted({heavy} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
