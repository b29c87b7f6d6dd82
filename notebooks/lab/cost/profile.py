"""Where a rung of the ladder spends its time: its process under cProfile, by whose code it is.

    python -m lab.cost.profile RUNG ◀─ raw clients ─▶ calls for each delivery, and seconds by package

The profiler begins when the server has started, and makes every Python call dearer than it is: shares of time lean
towards code in small functions. How *often* something is called for each delivery does not depend on the machine.
"""

import asyncio
import contextlib
import cProfile
import pstats
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.cost import ladder
from lab.cost.load import Load
from lab.cost.processes import ServerProcess
from servers import file_updates, sse
from servers.arguments import Parser, number, whole
from servers.background import ServerError, run
from servers.feed import Feed
from servers.limits import check_positive, check_whole
from servers.sources import play, synthetic_edits

MAKE: dict[str, Any] = ladder.RUNGS | {"sse": sse.create_app, "file-updates": file_updates.create_app}
SETTLE = 0.3  # s before what counts
WHOSE = {
    "sse_starlette": "sse-starlette",
    "anyio": "anyio",
    "starlette": "Starlette",
    "fastapi": "FastAPI",
    "uvicorn": "uvicorn",
    "asyncio": "asyncio",
    "json": "json",
    "servers": "this course",
    "lab": "this course",
}
OWN = "Python's own"
SENDS = ("write", "send")  # what a built-in function is called that ends in the kernel


@dataclass(frozen=True)
class Profile:
    """What one rung's process did for each delivery: `calls` of functions, and `seconds` by whose they are.

    The seconds are the profiler's: dearer than without it.
    """

    rung: str
    deliveries: int
    calls: float
    seconds: dict[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """The seconds as parts of one."""
        whole = sum(self.seconds.values())
        return {name: part / whole for name, part in self.seconds.items()}


async def profiles(
    rungs: Sequence[str] = ladder.LADDER, *, clients: int = 40, rate: float = 40.0, seconds: float = 1.5
) -> dict[str, Profile]:
    """Each rung's profile while `clients` raw event streams hear `rate` updates a second for so long.

    All rungs' processes are started together; then each works alone. Raises RuntimeError when one fails.
    """
    check_whole(clients=clients, least=1)
    check_positive(rate=rate, seconds=seconds)
    with ExitStack() as ends, tempfile.TemporaryDirectory() as folder:
        files = {rung: Path(folder, rung) for rung in rungs}
        servers = {
            rung: ServerProcess(rung, module="lab.cost.profile", rate=rate, file=str(file))
            for rung, file in files.items()
        }
        await asyncio.gather(*(asyncio.to_thread(ends.enter_context, server) for server in servers.values()))
        heard = {}
        for rung, server in servers.items():
            load = Load("sse", server.url)
            try:
                await load.connect(clients)
                await asyncio.sleep(SETTLE + seconds)
                heard[rung] = load.deliveries
            finally:
                load.close()
        await asyncio.to_thread(ends.close)  # the profile is written when a process ends
        return {rung: read(rung, files[rung], heard[rung]) for rung in rungs}


def read(rung: str, file: Path, deliveries: int) -> Profile:
    """A profile's sums. Raises RuntimeError where nothing was delivered, or nothing written."""
    if not file.exists() or not deliveries:
        raise RuntimeError(f"{rung}: {deliveries} deliveries, and {'a' if file.exists() else 'no'} profile")
    seconds: dict[str, float] = {}
    calls = 0
    for (path, _, name), (_, count, own, _, _) in pstats.Stats(str(file)).stats.items():  # type: ignore[attr-defined]  # typeshed leaves it out
        whose = owner(path, name)
        seconds[whose] = seconds.get(whose, 0.0) + own / deliveries
        calls += count
    return Profile(rung, deliveries, calls / deliveries, dict(sorted(seconds.items(), key=lambda item: -item[1])))


def owner(path: str, name: str) -> str:
    """Whose a function is."""
    if path == "~":
        return OWN if not any(word in name for word in SENDS) else "the socket"
    for part in reversed(Path(path).parts):
        if part.removesuffix(".py") in WHOSE:
            return WHOSE[part.removesuffix(".py")]
    return OWN


def main(arguments: list[str] | None = None) -> int:
    """Serve a rung until Ctrl-C or SIGTERM, and write its profile into the file; return the exit status."""
    p = Parser(prog="python -m lab.cost.profile", description="Serve one rung of the ladder under cProfile.")
    p.add_argument("model", choices=MAKE, metavar="RUNG", help=", ".join(MAKE))
    p.add_argument("--port", type=whole(0, 65535), default=8000, help="0: a free one")
    p.add_argument("--rate", type=number, default=ladder.RATE, metavar="R", help="updates a second (50)")
    p.add_argument("--file", required=True, help="what the profile is written into")
    options = p.parse_args(arguments)
    feed, profiler = Feed(), cProfile.Profile()

    async def profiled() -> None:
        profiler.enable()
        await play(feed, synthetic_edits(options.rate, seed=0, regular=True))

    try:
        with contextlib.closing(_Written(profiler, options.file)):
            return run(MAKE[options.model](feed, source=profiled), options.model, port=options.port)
    except ServerError as error:
        p.error(str(error))


@dataclass
class _Written:
    """A profile that is written into its file when it is closed."""

    profiler: cProfile.Profile
    file: str

    def close(self) -> None:
        self.profiler.disable()
        self.profiler.dump_stats(self.file)


if __name__ == "__main__":
    sys.exit(main())
