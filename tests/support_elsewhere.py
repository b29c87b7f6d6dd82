"""python -m tests.support_elsewhere win32|darwin: the course where what only Linux has is hidden from it.

Everything is imported once, for what others' modules need of this system. Then the course is imported anew, gets the
modules below as they are on the other system, and is put to work. Exit status 0: it works. It is no Windows and no Mac:
their own kernels and file systems are met in the workflow's job `elsewhere` alone.
"""

import asyncio
import builtins
import contextlib
import functools
import importlib
import pkgutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

OWN = ("lab", "servers")
OTHER: dict[str, dict[str, dict[str, Any]]] = {  # by system and module: what is something else there
    "win32": {
        "sys": {"platform": "win32"},
        "os": {"name": "nt", "supports_dir_fd": set(), "supports_fd": set(), "supports_follow_symlinks": set()},
    },
    "darwin": {"sys": {"platform": "darwin"}},
}
ABSENT: dict[str, dict[str, str | None]] = {  # by system and module: what is not there; None: the module
    "win32": {
        **dict.fromkeys(["fcntl", "grp", "pty", "pwd", "resource", "termios", "tty", "uvloop"]),
        "os": "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK chown fchmod fchown fork getloadavg getpgid getuid killpg"
        " pread pwrite sched_getaffinity sched_setaffinity sendfile setsid statvfs",
        "signal": "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGSTOP SIGUSR1 SIGUSR2",
        "socket": "AF_UNIX SO_REUSEPORT",
    },
    "darwin": {"os": "sched_getaffinity sched_setaffinity"},
}


def import_all() -> None:
    """Every module of the course, but those that are programs."""
    for package in map(importlib.import_module, OWN):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def view(system: str, name: str) -> ModuleType:
    """A module of this system as it is on the other. Raises ModuleNotFoundError where that has none."""
    absent = ABSENT[system].get(name, "")
    if absent is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    there = ModuleType(name)
    here = vars(importlib.import_module(name))
    vars(there).update({key: value for key, value in here.items() if key not in absent.split()})
    vars(there).update(OTHER[system].get(name, {}))
    return there


def hide(system: str) -> None:
    """From now on the course's modules import what the other system has."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]
    plain = builtins.__import__
    views = functools.cache(functools.partial(view, system))

    def importing(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        own = str((globals or {}).get("__name__")).partition(".")[0] in OWN
        if own and name in {*ABSENT[system], *OTHER[system]}:
            return views(name)
        return plain(name, globals, locals, fromlist, level)

    builtins.__import__ = importing


async def work(folder: Path) -> None:
    """Follow each model to an update; keep a copy of a directory that is watched, through edits of each kind."""
    from lab import clients
    from lab.mirror import Mirror
    from servers import Feed, Tree, file_updates, serve, watch
    from servers.models import model

    feed = Feed(epoch="e0e0")
    feed.publish("a.txt")
    for name, follow in clients.MODELS.items():
        stream: Any = follow
        with serve(model(name).create_app(feed)) as server:
            async with contextlib.aclosing(stream(server.url, "e0e0-0")) as news:
                assert (await anext(news)).path == "a.txt", name
    original, copy = folder / "original", folder / "copy"
    (original / "sub").mkdir(parents=True)
    (original / "a.txt").write_text("first")
    (original / "sub" / "b.txt").write_text("second")
    edits, tree = Feed(), Tree(original)

    def contents(top: Path) -> dict[str, bytes]:
        with contextlib.suppress(OSError):  # it changes under the look
            names = [name for name in top.rglob("*") if name.is_file() and ".mirror" not in name.parts]
            return {name.relative_to(top).as_posix(): name.read_bytes() for name in names}
        return {}

    async def mirrored() -> None:
        async for _ in Mirror(server.url, copy).follow():
            pass

    with serve(file_updates.create_app(edits, tree, source=functools.partial(watch, edits, tree))) as server:
        task = asyncio.create_task(mirrored())
        for edit in (
            lambda: None,
            lambda: (original / "a.txt").write_text("changed"),
            lambda: (original / "sub").rename(original / "moved"),
            lambda: (original / "moved" / "b.txt").unlink(),
        ):
            edit()
            while contents(copy) != contents(original):
                if task.done():
                    await task
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])


def main(system: str) -> int:
    """Hide, import and work; 1 where the doctor finds a fault."""
    import_all()
    hide(system)
    import_all()
    from lab import doctor

    report = doctor.examine()
    print(report)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(Path(folder)))
    return 0 if report.well else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
