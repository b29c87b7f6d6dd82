"""The whole thing at once: a real directory, a real server, twenty mirrors, and everything that can go wrong.

    DIR ── python -m servers file-updates (killed, started again)
             ├── 6 mirrors, directly                  ├── 3 over a link that is slow and is cut in mid-answer
             ├── 4 over a link that is cut            ├── 1 behind a relay that changes the files it carries
             ├── 3 over a link that is a black hole   └── 3 processes: one killed, one with an obstacle in its copy

A process of its own reads all copies all the time and reports every content it has seen. Nothing here depends on
speed: only what holds in the end, what was never seen, and what was logged.
"""

import asyncio
import contextlib
import json
import logging
import random
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote

import pytest

from lab.clients import Retry
from lab.mirror import Mirror
from lab.proxies.wire import Wire
from tests.support_mirror import contents, files, flipped, following, remove, sha256, truncated, write

EDITS, FILES, SEED = 300, 50, 6
HEARTBEAT = 0.5  # s
PATIENCE = 90.0  # s until all copies are right, on a very busy machine; about 3 on a quiet one

READER = """
import hashlib, json, os, sys, threading
seen, ended = {}, threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
while not ended.is_set():
    for copy in sys.argv[1:]:
        ended.wait(0.002)
        for directory, below, names in os.walk(copy):
            if directory == copy and ".mirror" in below:
                below.remove(".mirror")
            for name in names:
                full = os.path.join(directory, name)
                try:
                    with open(full, "rb") as file:
                        data = file.read()
                except OSError:
                    continue
                seen.setdefault(os.path.relpath(full, copy), {})[hashlib.sha256(data).hexdigest()] = len(data)
print(json.dumps(seen))
"""


class Editor:
    """Seeded edits of a real directory, each of which is there at once; `known` has every content a path ever had."""

    def __init__(self, directory: Path, aside: Path) -> None:
        self.directory, self.aside, self.rng = directory, aside, random.Random(SEED)
        self.known: defaultdict[str, set[str]] = defaultdict(set)
        self.done: Counter[str] = Counter()
        self.born = 0
        directory.mkdir()
        while len(self.living()) < FILES:
            self.create()

    def living(self) -> list[str]:
        return sorted(files(self.directory))

    def put(self, path: str, data: bytes) -> None:
        """Make the file what it should be, in one step: a half-written file would be one of DIR's contents, too."""
        self.known[path].add(sha256(data))
        self.aside.write_bytes(data)
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        self.aside.replace(self.directory / path)

    def edit(self) -> None:
        """One of the seeded edits."""
        kinds = {self.create: 20, self.modify: 25, self.alter: 15, self.rename: 13, self.delete: 17, self.move: 6,
                 self.nest: 4}  # fmt: skip
        living = len(self.living())
        kind = self.rng.choices(list(kinds), list(kinds.values()))[0]
        if living < FILES // 2:
            kind = self.create
        elif living >= FILES and kind in (self.create, self.nest):
            kind = self.delete
        kind()
        self.done[kind.__name__] += 1

    def create(self) -> None:
        self.born += 1
        self.put(f"d{self.rng.randrange(5)}/e{self.rng.randrange(2)}/{self.born}", self.data())

    def modify(self) -> None:
        self.put(self.rng.choice(self.living()), self.data())

    def alter(self) -> None:
        """Modify it without changing its size."""
        path = self.rng.choice(self.living())
        self.put(path, self.rng.randbytes((self.directory / path).stat().st_size))

    def rename(self) -> None:
        self.born += 1
        path = self.rng.choice(self.living())
        self.moved(path, f"d{self.rng.randrange(5)}/{self.born}")

    def delete(self) -> None:
        remove(self.directory, self.rng.choice(self.living()))

    def move(self) -> None:
        """Rename a directory with all that is in it."""
        self.born += 1
        path = self.rng.choice([path for path in self.living() if "/" in path]).partition("/")[0]
        self.moved(path, f"d{self.rng.randrange(5)}/moved-{self.born}")

    def nest(self) -> None:
        """Put a directory with a file where a file was."""
        path = self.rng.choice(self.living())
        remove(self.directory, path)
        self.put(f"{path}/nested", self.data())

    def moved(self, path: str, target: str) -> None:
        if target.startswith(f"{path}/"):
            target = target.replace("/", "-", 1)
        for below, digest in files(self.directory).items():
            if below == path or below.startswith(f"{path}/"):
                self.known[target + below.removeprefix(path)].add(digest)
        (self.directory / target).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / path).rename(self.directory / target)

    def data(self) -> bytes:
        return self.rng.randbytes(self.rng.choice([0, 1, 100, 5000, 60_000]))


class Server:
    """`python -m servers file-updates`, to be killed and started again at the same port."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, 0
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "servers", "file-updates", "--watch", str(self.directory)),
            *("--port", f"{self.port}", "--heartbeat", f"{HEARTBEAT}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        self.port = int(line.split()[2].rpartition(b":")[2])

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def tampering_relay(port: int, spoilt: set[str], read: set[str]) -> AsyncIterator[str]:
    """A relay that changes a byte of every third file, or cuts one off and says so: the paths are in `spoilt`.

    Where its client goes on to ask on the same connection, it has read that: they are in `read`, too. It knows no
    bundles, so that each file comes by itself.
    """
    rng, carried, tasks = random.Random(SEED), 0, set[asyncio.Task[None]]()

    async def carry(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        nonlocal carried
        server, requests = await asyncio.open_connection("127.0.0.1", port)
        sent = set[str]()  # on this connection
        try:
            while True:
                request = await client.readuntil(b"\r\n\r\n")
                read.update(sent)
                if content := re.search(rb"(?i)content-length: (\d+)\r\n", request):
                    await client.readexactly(int(content[1]))
                    answers.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                requests.write(request)
                head = await server.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)\r\n", head)
                if not length:
                    answers.write(head)
                    while data := await server.read(65536):  # the event stream
                        answers.write(data)
                        await answers.drain()
                    return
                body = await server.readexactly(int(length[1]))
                path = re.match(rb"GET /files/(\S+)", request)
                if path and body and head.startswith(b"HTTP/1.1 200"):
                    carried += 1
                    if carried % 3 == 0:
                        body = rng.choice([flipped, truncated])(body)
                        head = head.replace(length[0], b"content-length: %d\r\n" % len(body))
                        sent.add(unquote(path[1].decode()))
                        spoilt.update(sent)
                answers.write(head + body)
                await answers.drain()
        finally:
            requests.close()

    async def accept(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        try:
            await carry(client, answers)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            answers.close()
            tasks.discard(task)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as relay:
        yield f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
        for task in tuple(tasks):
            task.cancel()


class Mirrors:
    """Twenty of them, each on its own copy."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.copies: list[Path] = []
        self.inside: dict[Path, Mirror] = {}
        self.tasks: dict[Path, asyncio.Task[None]] = {}
        self.processes: dict[Path, asyncio.subprocess.Process] = {}
        self.arguments: dict[Path, tuple[str, ...]] = {}

    def new(self, name: str) -> Path:
        self.copies.append(self.directory / f"{len(self.copies):02} {name}")
        return self.copies[-1]

    def begin(self, name: str, url: str) -> Path:
        """One in this process."""
        copy = self.new(name)
        retry = Retry(0.2, 1.0, rng=random.Random(f"{copy.name}"))
        self.inside[copy] = Mirror(url, copy, heartbeat=HEARTBEAT, timeout=2.0, retry=retry)
        self.follow(copy)
        return copy

    def follow(self, copy: Path) -> None:
        self.tasks[copy] = asyncio.create_task(following(self.inside[copy], []))

    async def command(self, name: str, url: str, *options: str) -> Path:
        """One in a process of its own."""
        copy = self.new(name)
        limits = ("--heartbeat", f"{HEARTBEAT}", "--timeout", "2", "--longest-pause", "1")
        self.arguments[copy] = (url, str(copy), *limits, *options)
        await self.run(copy)
        return copy

    async def run(self, copy: Path) -> None:
        with (self.directory / f"{copy.name}.log").open("ab") as log:
            self.processes[copy] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "lab.mirror", *self.arguments[copy]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    async def kill(self, copy: Path) -> None:
        self.processes[copy].kill()
        await self.processes[copy].wait()

    async def cancel(self, copy: Path) -> None:
        self.tasks[copy].cancel()
        await asyncio.wait([self.tasks[copy]])

    async def converged(self, directory: Path, *, but: Path | None = None) -> None:
        """Return when every copy is right; name those that are not when that takes too long."""
        left = [copy for copy in self.copies if copy != but]
        try:
            async with asyncio.timeout(PATIENCE):
                while left:
                    for copy, task in self.tasks.items():
                        assert not task.done(), (copy, task)
                    for copy, process in self.processes.items():
                        assert process.returncode is None, (self.directory / f"{copy.name}.log").read_text()
                    expected = files(directory)
                    left = [copy for copy in left if files(copy) != expected]
                    await asyncio.sleep(0.1)
        except TimeoutError:
            expected = files(directory)
            raise AssertionError(
                {copy.name: sorted(set(files(copy).items()) ^ set(expected.items())) for copy in left}
            ) from None

    async def end(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for task in self.tasks.values():
            task.cancel()
        await asyncio.wait(self.tasks.values())
        for process in self.processes.values():
            assert await process.wait() == 0


def ended(process: asyncio.subprocess.Process) -> None:
    """Leave nothing running, also where a test fails in the midst of it."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def live_through(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    """Edits and faults; then everything must be as it should be."""
    directory = tmp_path / "dir"
    editor, server, mirrors = Editor(directory, tmp_path / "aside"), Server(directory), Mirrors(tmp_path)
    spoilt, read = set[str](), set[str]()
    await server.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.kill)
        cut, dark = stack.enter_context(Wire(server.url)), stack.enter_context(Wire(server.url))
        slow = stack.enter_context(Wire(server.url, delay=0.02, jitter=0.02, rate=400_000))
        relay = await stack.enter_async_context(tampering_relay(server.port, spoilt, read))

        stack.push_async_callback(mirrors.end)
        direct = [mirrors.begin("direct", server.url) for _ in range(6)]
        for link, number in ((cut, 4), (dark, 3), (slow, 3)):
            for _ in range(number):
                mirrors.begin("over a wire", link.url)
        mirrors.begin("behind the relay", relay)
        killed = await mirrors.command("a process to be killed", server.url)
        await mirrors.command("a process", slow.url)
        obstacle = write(tmp_path / "19 a process with an obstacle", "in the way/of a file", "somebody's own").parent
        blocked = await mirrors.command("a process with an obstacle", server.url, "--adopt")
        assert blocked == obstacle.parent
        assert len(mirrors.copies) == 20

        reader = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", READER, *map(str, mirrors.copies)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        stack.callback(ended, reader)
        await mirrors.converged(directory, but=blocked)

        async def at_once(action: Callable[[], object]) -> None:
            action()

        async def restart() -> None:
            await server.kill()
            await server.start()

        faults: dict[int, Callable[[], Awaitable[None]]] = {
            20: lambda: at_once(lambda: editor.put("in the way", b"what must go there")),
            40: lambda: at_once(cut.cut),
            60: lambda: at_once(dark.blackhole),
            80: lambda: mirrors.kill(killed),
            95: lambda: at_once(lambda: slow.cut_after(30_000)),
            110: server.kill,
            140: server.start,
            150: lambda: mirrors.run(killed),
            170: lambda: at_once(dark.heal),
            190: lambda: mirrors.cancel(direct[0]),
            200: lambda: mirrors.kill(killed),
            210: lambda: mirrors.run(killed),
            220: restart,
            230: lambda: at_once(lambda: mirrors.follow(direct[0])),
            240: lambda: at_once(lambda: cut.blackhole("down")),
            250: lambda: mirrors.kill(killed),
            270: lambda: at_once(lambda: cut.cut_after(10_000, "up")),
            280: lambda: at_once(cut.heal),
            290: lambda: mirrors.run(killed),
        }
        for number in range(EDITS):
            if fault := faults.get(number):
                await fault()
            editor.edit()
            await asyncio.sleep(0.0 if number % 30 < 12 else 0.05)  # a burst, then one by one

        await mirrors.converged(directory, but=blocked)
        assert (obstacle / "of a file").read_text() == "somebody's own"
        remove(blocked, "in the way")
        await mirrors.converged(directory)
        for copy in mirrors.copies:  # no directory is left that has become empty
            assert all(any(path.startswith(name) for path in files(copy)) for name in contents(copy) if name[-1] == "/")

        output, _ = await reader.communicate(b"")
        for copy, mirror in mirrors.inside.items():
            assert mirror.counters.relisted >= 1, copy

    assert set(editor.done) == {"create", "modify", "alter", "rename", "delete", "move", "nest"}
    seen: dict[str, dict[str, int]] = json.loads(output)
    del seen["in the way/of a file"]
    unknown = {path: set(found) - editor.known[path] for path, found in seen.items()}
    assert {path: found for path, found in unknown.items() if found} == {}
    assert len(seen) > FILES

    lines = log()
    named = {match[1] for line in lines if (match := re.match(r"'(.*)' cannot be fetched \(\d+ bytes", line))}
    assert read
    assert read <= named <= spoilt
    for kind in ("ReadTimeout", "Connection", "the log does not reach back to"):
        assert any(kind in line for line in lines), kind
    said = (tmp_path / f"{blocked.name}.log").read_text().splitlines()
    assert said.count("WARNING 'in the way' cannot be written (Is a directory): trying again") == 1


@pytest.mark.timeout(300)
def test_twenty_copies_become_identical_whatever_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After 300 edits amid every fault there is, all trees are the same; nothing partial was seen, each fault named."""
    caplog.set_level(logging.WARNING, "lab.mirror")

    def log() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "lab.mirror"]

    asyncio.run(asyncio.wait_for(live_through(tmp_path, log), 280))
