"""python -m lab.doctor: whether this machine has all that the course needs, a line each, with what to do where not.

    ok     it is as it should be
    note   the course goes on without it, and this is what will be different
    fault  something will not work

The exit status is 1 where there is a fault. What can be is tried, not looked up: a byte goes through the loopback, a
file is written, a change is heard of. What may be missing is imported where it is needed: the rest is told even so.
An older Python, back to 3.9, is told that it is one.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from servers.arguments import Parser

NAME = "push-vs-pull"  # of the package that names what the course needs
PORT = 8000  # of the servers in terminals, unless they are given another
FILES_LEAST, FILES_ENOUGH = 256, 1024  # open at once in one process: some hundred clients and their server share them
WATCHES_ENOUGH = 8192  # directories
ROOM = 200 * 2**20  # bytes, of what a notebook writes
PATIENCE = 10.0  # s, for what takes milliseconds
SYSTEM_FOLDERS = "/usr/sbin:/sbin:/usr/local/sbin"  # where Debian puts nginx
PROGRAMS = [  # what it may be called, the package, what it is for
    (("nginx",), "nginx", "the notebooks show an imitation of it instead"),
    (("redis-server", "valkey-server"), "redis-server", "only many workers and hosts need it"),
    (("chromium", "chromium-browser", "google-chrome"), "chromium", "only the tests of the pages need it"),
    (("rsync",), "rsync", "only a benchmark compares with it"),
]
# Another IPython ends its session.
COLAB_OWN = ("ipython", "ipywidgets", "jupyter-core", "jupyterlab", "jupyter-server-proxy", "nbval")
INSTALL = {"linux": "sudo apt-get install", "darwin": "brew install"}


class Finding(NamedTuple):
    """One line: "ok", "note" or "fault", what was found, and what to do about it."""

    state: str
    what: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.state:5}  {self.what}" + (f": {self.cure}" if self.cure else "")


class Report(list[Finding]):
    """What was found, shown a line each."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self))

    @property
    def well(self) -> bool:
        """Whether there is no fault."""
        return all(finding.state != "fault" for finding in self)


def python() -> Iterator[Finding]:
    """This Python, against what the package asks for."""
    least = (3, 11)
    found = f"Python {sys.version.split()[0]}"
    if sys.version_info >= least:
        yield Finding("ok", found)
    else:
        yield Finding("fault", found, "the course needs 3.11 or later: make the environment anew with that")


def surroundings() -> Iterator[Finding]:
    """What is different on Windows, and in Google's Colab."""
    if sys.platform == "win32":
        differs = "Windows: a server has one process, nginx is imitated, and processors' times step by 16 ms"
        if sys.version_info < (3, 13):
            differs += ", as delays do before Python 3.13"
        yield Finding("note", differs, "read costs and short delays with that in mind")
    if in_colab():
        yield Finding("note", "Colab: no live page shows inside a notebook", "use JupyterLab or Binder for those")


def in_colab() -> bool:
    """Whether this is Google's Colab, where the kernel's own packages must stay as they are."""
    return "COLAB_RELEASE_TAG" in os.environ


def bounds() -> list[str]:
    """What the package asks for: by pyproject.toml where this is a clone, whose metadata may be of an older commit."""
    import tomllib

    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"] if pyproject.exists() else {}
    if project.get("name") == NAME:
        return list(project["dependencies"])
    return [line for line in metadata.requires(NAME) or [] if "extra ==" not in line]


def packages(needed: Sequence[str] | None = None) -> Iterator[Finding]:
    """Whether what the package asks for (or what is `needed`), with the extras it names, is here and in bounds."""
    try:
        needed = bounds() if needed is None else needed
    except metadata.PackageNotFoundError:
        yield Finding("fault", "packages: the course is not installed", "python -m pip install -e . in its folder")
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("fault", "packages: packaging is missing", "python -m pip install packaging")
        return

    def wanting(lines: Iterable[str], extra: str = "") -> Iterator[tuple[Requirement, str]]:
        """What is absent, or in another release, and what is there; of the lines that hold with this extra."""
        for requirement in map(Requirement, lines):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            try:
                found = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                yield requirement, "is missing"
                continue
            if not requirement.specifier.contains(found, prereleases=True):
                yield requirement, f"is {found}"
            for own in requirement.extras:
                asked = metadata.requires(requirement.name) or []
                yield from wanting([line for line in asked if "extra ==" in line], own)

    if in_colab():
        needed = [line for line in needed if Requirement(line).name not in COLAB_OWN]
    wrong = {requirement.name: (requirement, found) for requirement, found in wanting(needed)}
    for name, (requirement, found) in wrong.items():
        limits = f" ({requirement.specifier} is needed)" if requirement.specifier else ""
        cure = f'python -m pip install "{name}{requirement.specifier}"'
        yield Finding("fault", f"packages: {name} {found}{limits}", cure)
    if not wrong:
        yield Finding("ok", f"packages: all {len(needed)} are here, in bounds")


def loopback() -> Iterator[Finding]:
    """A byte from this process to itself, by IPv4, which every server here uses, and by IPv6."""
    for family, host, name in ((socket.AF_INET, "127.0.0.1", "IPv4"), (socket.AF_INET6, "::1", "IPv6")):
        try:
            with socket.create_server((host, 0), family=family) as listening:
                listening.settimeout(PATIENCE)
                with socket.create_connection(listening.getsockname()[:2], PATIENCE) as near:
                    far, _ = listening.accept()
                    with far:
                        far.settimeout(PATIENCE)
                        near.sendall(b"?")
                        if far.recv(1) != b"?":
                            raise OSError("what was sent does not arrive")
        except OSError as error:
            why = f"loopback, {name}: {error.strerror or error}"
            if family == socket.AF_INET:
                yield Finding("fault", why, f"a firewall, or a container without {host}, is in the way")
            else:
                yield Finding("note", why, "nothing here needs it; say 127.0.0.1, not localhost")
        else:
            yield Finding("ok", f"loopback, {name}: a free port, and a byte through it")


def port() -> Iterator[Finding]:
    """The port that a server in a terminal takes by default."""
    with socket.socket() as tried:
        if os.name == "posix":  # elsewhere it would share the port of another
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", PORT))
        except OSError as error:
            cure = "give servers in terminals another --port, or 0 for a free one"
            yield Finding("note", f"port {PORT}: {error.strerror or error}", cure)
        else:
            yield Finding("ok", f"port {PORT}: free")


def open_files() -> Iterator[Finding]:
    """How many files and sockets this process may have open; Windows has no such limit."""
    if sys.platform == "win32":
        return
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "open files: " + ("no limit" if soft == resource.RLIM_INFINITY else f"{soft} at once")
    if soft != resource.RLIM_INFINITY and soft < FILES_ENOUGH:
        state = "fault" if soft < FILES_LEAST else "note"
        yield Finding(state, found, f"`ulimit -n {FILES_ENOUGH}` in the shell that starts JupyterLab, for many clients")
    else:
        yield Finding("ok", found)


def watching() -> Iterator[Finding]:
    """A change in a directory, heard of as the servers hear of it; on Linux the limits that this has."""
    try:
        from servers.hints import LIMITS, hints_of
        from servers.tree import Tree
    except ImportError as error:
        yield Finding("fault", f"watching a directory: {error}", "see the packages above")
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            tree = Tree(Path(folder), first_look=False)
            tree.listener = hints = hints_of(tree)
            try:
                tree.scan()
                Path(folder, "a").touch()
                heard = not hints.blind and any(hints.wait(PATIENCE))
                blind = hints.blind
            finally:
                hints.close()
    except OSError as error:
        yield Finding("fault", f"watching a directory: {error}", "see the temporary directory below")
        return
    if blind or not heard:
        cure = "changes are still found, by looking now and then: later"
        yield Finding("note", f"watching a directory: {blind or 'nothing is heard'}", cure)
    else:
        yield Finding("ok", "watching a directory: a change is heard of")
    limit = LIMITS / "max_user_watches"
    if limit.exists() and (most := int(limit.read_text())) < WATCHES_ENOUGH:
        cure = f"sudo sysctl fs.inotify.max_user_watches={10 * WATCHES_ENOUGH}, for large trees"
        yield Finding("note", f"watching a directory: {most} directories at once", cure)


def proxy() -> Iterator[Finding]:
    """Whether the environment, or the system's settings, would have a proxy asked for what is on this machine."""
    ways = {scheme: url for scheme, url in urllib.request.getproxies().items() if scheme in ("http", "https", "all")}
    caught = [host for host in ("127.0.0.1", "localhost") if not urllib.request.proxy_bypass(host)] if ways else []
    if caught:
        cure = "set NO_PROXY=127.0.0.1,localhost for curl and browsers; the course's own clients ask no proxy"
        yield Finding("note", f"proxy: it would be asked for {' and '.join(caught)}", cure)
    else:
        yield Finding("ok", "proxy: none stands before this machine's own servers")


def temporary_directory() -> Iterator[Finding]:
    """A file, written and read back where the notebooks put theirs."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"?")
            file.seek(0)
            if file.read() != b"?":
                raise OSError("what was written is not there")
        free = shutil.disk_usage(tempfile.gettempdir()).free
    except OSError as error:
        cure = "set TMPDIR to a directory that can be written to"
        yield Finding("fault", f"temporary directory: {error.strerror or error}", cure)
        return
    found = f"temporary directory: can be written to, {free / 2**30:.1f} GiB free"
    if free < ROOM:
        yield Finding("note", found, "make room, or set TMPDIR to where there is some")
    else:
        yield Finding("ok", found)


def jupyter_directory() -> Iterator[Finding]:
    """Where Jupyter writes how a kernel that runs is reached: without such a place it does not start."""
    try:
        from jupyter_core.paths import jupyter_runtime_dir
    except ImportError:  # which the packages tell
        return
    folder = Path(jupyter_runtime_dir())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        cure = "set HOME to a directory that can be written to"
        yield Finding("fault", f"Jupyter's directory {folder}: {error.strerror or error}", cure)
    else:
        yield Finding("ok", "Jupyter's directory: can be written to")


def programs() -> Iterator[Finding]:
    """What some chapters and tests can use."""
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS.split(":")])
    for names, package, use in PROGRAMS:
        if any(shutil.which(name, path=folders) for name in names):
            yield Finding("ok", f"{package}: here")
        else:
            command = INSTALL.get(sys.platform)
            yield Finding("note", f"{package}: not here; {use}", f"{command} {package}" if command else "")


CHECKS = (surroundings, packages, loopback, port, open_files, watching, proxy, temporary_directory, jupyter_directory,
          programs)  # fmt: skip


def examine() -> Report:
    """Look at everything; it takes about a tenth of a second. In a Python that is too old, at nothing else."""
    report = Report(python())
    for check in CHECKS if report.well else ():
        report += check()
    return report


def main(arguments: list[str] | None = None, program: str = "python -m lab.doctor") -> int:
    """Print what is found; return 1 where there is a fault."""
    description = "Look whether this machine has all that the course needs."
    Parser(prog=program, description=description).parse_args(arguments)
    report = examine()
    print(report)
    return 0 if report.well else 1


if __name__ == "__main__":
    sys.exit(main())
