"""The mirror as a state machine: edits, faults and kills in any order lead to the same tree.

hypothesis draws a script of steps, and at its end the script is played in virtual time: the real service of a real
directory, the real mirror, a simulated network. A *kill* takes the copy away from under the mirror before it can put
anything in order, as SIGKILL does, between any two of its steps that wait.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from lab.virtual import Link, Net, run_virtual
from tests.support_mirror import Stage, a_mirror, files, flipped, following, remove, truncated, write

PATHS = ("a", "b", "d/a", "d/b", "a/x", "a/x/y")  # a file here is a directory there
CONTENTS = (b"", b"1", b"2", b"three", b"seven", b"x" * 40_000)  # few, so that a copy often has what it needs
LIMIT = 120  # virtual seconds until the copy must be right

paths, contents = st.sampled_from(PATHS), st.sampled_from(CONTENTS)
pauses = st.sampled_from([0.0, 0.0, 0.01, 0.06, 0.3, 3.0])  # s; a transit takes 0.02


class Step(NamedTuple):
    """What happens, to what, and how long nothing else does then (virtual s)."""

    what: str
    path: str = ""
    data: Any = None
    pause: float = 0.0


class Mirroring(RuleBasedStateMachine):
    """The script so far, and the paths that are files after it."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[Step] = []
        self.living: set[str] = set()

    def give_way(self, path: str) -> None:
        """Remove what cannot be there together with a file of that path."""
        for other in sorted(self.living):
            if other.startswith(f"{path}/") or path.startswith(f"{other}/"):
                self.living.discard(other)
                self.script.append(Step("remove", other))

    @rule(path=paths, data=contents, pause=pauses)
    def write(self, path: str, data: bytes, pause: float) -> None:
        self.give_way(path)
        self.living.add(path)
        self.script.append(Step("write", path, data, pause))

    @precondition(lambda self: self.living)
    @rule(number=st.integers(0, 9), pause=pauses)
    def delete(self, number: int, pause: float) -> None:
        path = sorted(self.living)[number % len(self.living)]
        self.living.discard(path)
        self.script.append(Step("remove", path, None, pause))

    @precondition(lambda self: self.living)
    @rule(number=st.integers(0, 9), to=paths, pause=pauses)
    def rename(self, number: int, to: str, pause: float) -> None:
        path = sorted(self.living)[number % len(self.living)]
        if not to.startswith(f"{path}/") and not path.startswith(f"{to}/"):
            self.give_way(to)
            self.living = self.living - {path} | {to}
            self.script.append(Step("rename", path, to, pause))

    @rule(pause=pauses)
    def notice(self, pause: float) -> None:
        """The server sees what has changed; edits between two looks come together."""
        self.script.append(Step("look", pause=pause))

    @rule(what=st.sampled_from(["cut", "cut after", "black hole", "half open", "heal"]), pause=pauses)
    def trouble_the_link(self, what: str, pause: float) -> None:
        self.script.append(Step(what, pause=pause))

    @rule(away=pauses)
    def restart_the_server(self, away: float) -> None:
        self.script.append(Step("restart", data=away))

    @rule(away=pauses)
    def kill_the_mirror(self, away: float) -> None:
        self.script.append(Step("kill", data=away))

    @rule(path=paths, how=st.sampled_from([flipped, truncated]))
    def corrupt(self, path: str, how: Any) -> None:
        """The next fetch of that path gets other bytes than the server has."""
        self.script.append(Step("corrupt", path, how))

    def teardown(self) -> None:
        """Play it."""
        if self.script:
            with tempfile.TemporaryDirectory() as place:
                run_virtual(lambda net: play(net, Path(place), self.script), link=Link(delay=0.02), limit=3600)


async def play(net: Net, place: Path, script: list[Step]) -> None:
    """Do it step by step; then everything heals, and the copy must become right, and stay so."""
    copy, stage, history = place / "copy", Stage(place / "dir", history=8), dict[str, set[str]]()
    write(stage.directory, "b", "there from the start")
    await stage.start()
    task = start(copy)
    for step in script:
        await do(step, net, stage, copy)
        for path, digest in files(stage.directory).items():
            history.setdefault(path, set()).add(digest)
        if step.what == "kill":
            await kill(copy, task, step.data)
            task = start(copy)
        await asyncio.sleep(step.pause)
        assert not task.done(), task
        partial = {path for path, digest in files(copy).items() if digest not in history.get(path, ())}
        assert not partial, partial
    net.link.heal()
    stage.look()
    async with asyncio.timeout(LIMIT):
        while files(copy) != files(stage.directory):  # noqa: ASYNC110  # virtual: it costs nothing
            await asyncio.sleep(0.25)
    await asyncio.sleep(10)  # whatever is late would now undo it
    assert not task.done(), task
    assert files(copy) == files(stage.directory)
    await kill(copy, task, 0)
    net.link.cut()
    await stage.stop()


def start(copy: Path) -> asyncio.Task[None]:
    return asyncio.create_task(following(a_mirror(copy), []))


def move(name: Path, to: Path) -> None:
    if name.exists():
        name.rename(to)


async def kill(copy: Path, task: asyncio.Task[None], away: float) -> None:
    """End a mirror, and leave its copy exactly as it is now."""
    aside = copy.with_name("out of reach")
    move(copy, aside)
    task.cancel()
    await asyncio.wait([task])
    move(aside, copy)
    await asyncio.sleep(away)


async def do(step: Step, net: Net, stage: Stage, copy: Path) -> None:
    """One step, but for what concerns the mirror itself."""
    match step.what:
        case "write":
            for above in Path(step.path).parents[:-1]:
                if (stage.directory / above).is_file():
                    remove(stage.directory, str(above))
            if (stage.directory / step.path).is_dir():
                remove(stage.directory, step.path)
            write(stage.directory, step.path, step.data)
        case "remove":
            remove(stage.directory, step.path)
        case "rename":
            target = stage.directory / step.data
            if target.is_dir():
                remove(stage.directory, step.data)
            target.parent.mkdir(parents=True, exist_ok=True)
            (stage.directory / step.path).rename(target)
        case "look":
            stage.look()
        case "cut":
            net.link.cut()
        case "cut after":
            net.link.cut_after(500)
        case "black hole":
            net.link.blackhole()
        case "half open":
            net.link.blackhole("down")
        case "heal":
            net.link.heal()
        case "restart":
            await stage.stop()
            await asyncio.sleep(step.data)
            await stage.start()
        case "corrupt":
            stage.meddler.tamper.setdefault(step.path, []).append(step.data)


TestMirroring = Mirroring.TestCase
TestMirroring.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, print_blob=True
)
