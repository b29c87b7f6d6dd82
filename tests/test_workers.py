"""One server in several processes: what clients get while workers are killed and Redis restarts, and how it ends."""

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from lab.proxies import RedisServer
from servers.feed import Feed
from servers.service import CELLS, Traffic
from servers.workers import Workers, listeners
from tests.support import PATIENCE, command, ended, on_a_loop, until
from tests.support_feed import READERS, client

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets are handed on")
SENTENCE = re.compile(r"(\S+) at (http://127\.0\.0\.1:\d+) \((\d) workers; Ctrl-C stops them\)\n")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A Redis for the whole file; each test has a key of its own."""
    with RedisServer() as server:
        yield server


class Running:
    """A server in several processes."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process, self.url = process, url

    @property
    def workers(self) -> list[psutil.Process]:
        """Its processes that are there now."""
        return psutil.Process(self.process.pid).children()

    async def get(self, path: str) -> httpx.Response:
        """By a connection of its own: whichever worker the kernel chooses."""
        async with client() as http:
            return await http.get(self.url + path)

    async def get_until(self, status: int, path: str) -> httpx.Response:
        """Ask until that is the status."""
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = await self.get(path)
                if answer.status_code == status:
                    return answer
                await asyncio.sleep(0.02)

    async def holds(self, count: int) -> None:
        """Return when so many streams are open."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if (await self.metrics())["updates_held"] == count:
                    return
                await asyncio.sleep(0.02)

    async def metrics(self) -> dict[str, float]:
        """What any of them tells."""
        lines = (await self.get("/metrics")).text.splitlines()
        return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@contextlib.asynccontextmanager
async def running(redis: RedisServer, model: str, *options: object, count: int = 2) -> AsyncIterator[Running]:
    """`python -m servers MODEL --workers N` on a log of its own; afterwards nothing of it is left."""
    url = f"redis://127.0.0.1:{redis.port}/0?key={os.urandom(4).hex()}"
    words = ("--feed", url, "--workers", count, "--port", 0)
    async with command("servers", model, *words, *options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 2 * PATIENCE)).decode()
        match = SENTENCE.fullmatch(line)
        assert match, line or await process.stderr.read()
        assert (match[1], match[3]) == (model, str(count))
        server = Running(process, match[2])
        workers = server.workers
        assert len(workers) == count
        try:
            yield server
        finally:
            workers += server.workers if process.returncode is None else []
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # after which nobody ends them: they notice
            await process.wait()
            await until(lambda: not any(map(alive, workers)))


async def gather(url: str, model: str, seen: dict[int, str], twice: list[int]) -> None:
    """Follow the log from its beginning for ever, coming back by the cursor whenever a connection ends."""
    cursor = "0"
    while True:
        with contextlib.suppress(httpx.HTTPError, OSError, EOFError):
            async for updates, after in READERS[model](url, cursor):
                cursor = after
                for update in updates:
                    if update["seq"] in seen:
                        twice.append(update["seq"])
                    seen[update["seq"]] = update["path"]
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("model", ["sse", "long-polling"])
def test_each_client_gets_everything_while_a_worker_is_killed(redis: RedisServer, model: str) -> None:
    """Whichever worker a client has, it gets each update once; killed, its clients go on by cursor."""

    @on_a_loop
    async def body() -> None:
        async with running(redis, model, "--rate", 40, "--regular", "--heartbeat", 1) as server:
            clients: list[tuple[dict[int, str], list[int]]] = [({}, []) for _ in range(8)]
            tasks = [asyncio.create_task(gather(server.url, model, *each)) for each in clients]
            for victim in server.workers:  # one of them holds the lease
                before = max(len(seen) for seen, _ in clients)
                await until(lambda before=before: all(len(seen) > before + 20 for seen, _ in clients))  # type: ignore[misc]
                victim.kill()
                await until(lambda victim=victim: len(server.workers) == 2 and victim not in server.workers)  # type: ignore[misc]
            before = max(len(seen) for seen, _ in clients)
            await until(lambda: all(len(seen) > before + 20 for seen, _ in clients))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for seen, twice in clients:
                assert sorted(seen) == list(range(1, max(seen) + 1))
                assert twice == []

    body()


def test_the_numbers_of_all_workers_add_up(redis: RedisServer) -> None:
    """Any worker tells what all have done; a worker that takes another's place goes on with its numbers."""

    @on_a_loop
    async def body() -> None:
        async with running(redis, "sse", "--rate", 1000, "--heartbeat", 60) as server:
            await until_metrics(server, lambda told: told["updates_published_total"] >= 50)
            wanted, got = 12, list[int]()

            async def ten() -> None:
                async with contextlib.aclosing(READERS["sse"](server.url, "0")) as answers:
                    async for updates, _ in answers:
                        got.extend(update["seq"] for update in updates)
                        if got.count(10):
                            return

            for _ in range(wanted):
                await asyncio.wait_for(ten(), PATIENCE)
            await until_metrics(server, lambda told: told["updates_held"] == 0)
            told = await server.metrics()
            assert told["updates_requests_total"] == wanted
            assert told["updates_delivered_total"] >= len(got)
            for worker in server.workers:
                worker.kill()
            await until_metrics(server, lambda after: after["updates_requests_total"] == wanted)

    async def until_metrics(server: Running, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if condition(await server.metrics()):
                        return
                await asyncio.sleep(0.05)

    body()


def test_deliveries_are_counted_once_whoever_made_them() -> None:
    """The sums over the cells of all workers are what all of them did, and a successor holds nothing at first."""
    cells = memoryview(bytearray(3 * CELLS * 8)).cast("q")
    everybody = [cells[at : at + CELLS] for at in range(0, len(cells), CELLS)]
    workers = [Traffic("SSE", Feed()) for _ in range(3)]
    for number, each in enumerate(workers):
        each.join(everybody, number)
        each.delivered += 10**number
        each.held += 2
    assert [each.total("delivered") for each in workers] == [111] * 3
    successor = Traffic("SSE", Feed())
    successor.join(everybody, 1)
    assert (successor.total("delivered"), successor.total("held")) == (111, 4)


def test_a_directory_is_watched_by_one_and_served_by_all(redis: RedisServer, tmp_path: Path) -> None:
    """Listing, files and news are the same from each worker; when the watcher is killed another takes over, and only
    what has changed meanwhile is announced."""

    @on_a_loop
    async def body() -> None:
        watched, beside = tmp_path / "watched", tmp_path / "beside"
        watched.mkdir()

        def put(name: str) -> None:
            """A file that is there whole or not at all: one that was opened and not yet written is news, too."""
            beside.write_text(name)
            beside.rename(watched / name)

        put("a")
        put("b")
        async with running(redis, "file-updates", "--watch", watched) as server:

            async def listed(*names: str) -> None:
                async with asyncio.timeout(PATIENCE):
                    for _ in range(6):  # of both workers, most likely
                        while True:
                            with contextlib.suppress(httpx.HTTPError):
                                answer = await server.get("/files")
                                if answer.status_code == 200:
                                    files = {each["path"] for each in answer.json()["files"]}
                                    if files == set(names):
                                        break
                            await asyncio.sleep(0.02)
                        for name in names:  # of a worker that may have heard of it a moment later
                            assert (await server.get_until(200, f"/files/{name}")).text == name

            await listed("a", "b")
            seen, twice = dict[int, str](), list[int]()
            following = asyncio.create_task(gather(server.url, "sse", seen, twice))
            put("c")
            await listed("a", "b", "c")
            victims = server.workers
            for victim in victims:
                victim.kill()
            put("d")
            (watched / "a").unlink()
            await listed("b", "c", "d")
            await until(lambda: len(seen) >= 3)
            following.cancel()
            await asyncio.wait({following})
            assert list(seen.values()) == ["c", "d", "a"]
            assert twice == []

    body()


def test_without_redis_polls_are_refused_and_health_says_why(tmp_path: Path) -> None:
    """While Redis is gone a poll is 503 with Retry-After, of a worker that starts meanwhile too; then all is well."""

    @on_a_loop
    async def body() -> None:
        with RedisServer() as redis:
            async with running(redis, "long-polling", "--rate", 1, count=1 + 1) as server:
                assert (await server.get("/healthz")).status_code == 200
                redis.kill()
                answer = await server.get_until(503, "/updates?after=0")
                assert answer.headers["retry-after"] == "5"
                assert "cannot be reached" in answer.json()["detail"]
                answer = await server.get_until(503, "/healthz")
                assert "cannot be reached" in answer.json()["status"]
                killed = server.workers[0]
                killed.kill()
                await until(lambda: len(server.workers) == 2 and killed not in server.workers)
                for answer in await asyncio.gather(*(server.get("/updates?after=0") for _ in range(12))):
                    assert answer.status_code == 503, answer.text
                redis.start()
                await server.get_until(200, "/healthz")
                await server.get_until(200, "/updates?after=0")

    body()


def test_the_limits_are_of_all_workers_together(redis: RedisServer) -> None:
    """Each worker has its share of the connections, so that there are never more; whoever leaves makes room."""

    @on_a_loop
    async def body() -> None:
        async with running(redis, "sse", "--max-connections", 3) as server:
            host, port = server.url.removeprefix("http://").split(":")

            async def status() -> str:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
                streams.append(writer)
                return (await reader.readline()).decode().split()[1]

            streams, said = list[asyncio.StreamWriter](), list[str]()
            async with asyncio.timeout(PATIENCE):
                while said.count("200") < 3:  # whichever workers the kernel chooses
                    said.append(await status())
                assert {await status() for _ in range(8)} == {"503"}
                streams[said.index("200")].close()
                await server.holds(2)
                while await status() != "200":
                    pass
            for writer in streams:
                writer.close()

    body()


async def end_of(url: str) -> bytes:
    """The last that a stream says, once it has begun."""
    said = b""
    async with client() as http, http.stream("GET", f"{url}/events") as response:
        async for chunk in response.aiter_raw():
            said = said[-100:] + chunk
    return said


def test_each_worker_drains(redis: RedisServer) -> None:
    """After the signal no connection is accepted, all streams end with the words of a lease, and then the command."""

    @on_a_loop
    async def body() -> None:
        async with running(redis, "sse", "--drain", 4) as server:
            streams = [asyncio.create_task(end_of(server.url)) for _ in range(12)]
            await server.holds(12)
            server.process.send_signal(signal.SIGTERM)
            begin, ends = time.monotonic(), list[float]()
            for stream in asyncio.as_completed(streams):
                assert (await stream).endswith(b"event: renew\nretry: 100\ndata: {}\n\n")
                ends.append(time.monotonic() - begin)
            with pytest.raises(httpx.ConnectError):
                await server.get("/healthz")
            assert await ended(server.process) == (0, "", "")
            assert ends[-1] - ends[0] > 0.5, "a glide"

    body()


def test_a_second_signal_ends_all_workers_at_once(redis: RedisServer) -> None:
    """And so does the end of the parent, whatever drain is under way."""

    @on_a_loop
    async def body() -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            async with running(redis, "sse", "--drain", 600) as server:
                stream = asyncio.create_task(end_of(server.url))
                await server.holds(1)
                workers = server.workers
                server.process.send_signal(signal.SIGTERM)
                await server.get_until(503, "/healthz")
                server.process.send_signal(sign)
                with contextlib.suppress(httpx.TransportError):  # one that was slow to hear of it is cut off
                    await stream
                await until(lambda workers=workers: not any(map(alive, workers)))  # type: ignore[misc]

    body()


def alive(process: psutil.Process) -> bool:
    """Whether it is there, and has not just ended."""
    return process.is_running() and process.status() != "zombie"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_it(redis: RedisServer, sign: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it with streams open, with status 0; killed, its workers end by themselves."""

    @on_a_loop
    async def body() -> None:
        async with running(redis, "sse") as server, client() as http, http.stream("GET", f"{server.url}/events"):
            workers = server.workers
            server.process.send_signal(sign)
            status, out, err = await ended(server.process) if sign != signal.SIGKILL else (0, "", "")
            assert (status, out, err) == (0, "", "")
            await until(lambda: not any(map(alive, workers)))

    body()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sse --workers 2", "--workers needs --feed"),
        ("demo --feed redis://127.0.0.1:1", "--feed is for the four models and file-updates"),
        ("sse --feed URL --workers 3 --max-connections 2", "--max-connections and --max-per-address are shared out"),
        ("sse --workers 0", "argument --workers: a whole number from 1 to 256, not '0'"),
        ("sse --feed redis:/x", "a feed is redis://HOST:PORT/DB?key=KEY"),
        ("sse --feed redis:/x --workers 2", "a feed is redis://HOST:PORT/DB?key=KEY"),
        ("sse --feed redis://127.0.0.1:1", "Redis at 127.0.0.1:1 cannot be reached"),
        ("sse --feed redis://127.0.0.1:1 --workers 3", "Redis at 127.0.0.1:1 cannot be reached"),
        ("file-updates --watch /nowhere --feed URL --workers 2", "/nowhere: No such file or directory"),
    ],
)
def test_what_cannot_be_is_one_line(redis: RedisServer, words: str, said: str) -> None:
    """However many workers were asked for, a mistake is told once, with status 2."""

    @on_a_loop
    async def body() -> None:
        async with command("servers", "--port", "0", *words.replace("URL", redis.url).split()) as process:
            status, out, err = await ended(process)
            assert (status, out) == (2, "")
            assert err.startswith(f"python -m servers: {said}")
            assert err.count("\n") == 1

    body()


def test_a_worker_that_is_killed_before_it_is_ready_is_one_line(redis: RedisServer) -> None:
    """It could not say itself why there is no server."""

    @on_a_loop
    async def body() -> None:
        async with command("servers", "sse", "--feed", redis.url, "--workers", 2, "--port", 0) as process:
            parent = psutil.Process(process.pid)
            await until(parent.children)
            parent.children()[0].kill()
            assert await ended(process) == (1, "", "ERROR worker 1 has ended with signal SIGKILL before it was ready\n")

    body()


WORKER = "import time; print('sse at http://localhost', flush=True); time.sleep(60)"


class Scarce(Workers):
    """On a machine that can start no process at times: before those numbers, and with a stand-in for a worker."""

    def __init__(self, *failing: int) -> None:
        super().__init__(["sse"], 1, "127.0.0.1", 0)
        self.failing, self.tries = failing, 0

    def worker(self, number: int) -> subprocess.Popen[str]:
        """A process that says what a worker says."""
        self.tries += 1
        if self.tries in self.failing:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)


def test_a_worker_that_cannot_be_started_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """The first time is the end, with one line; later, when its place was served before, it is tried until it goes."""
    workers = Scarce(1)
    assert not workers.start()
    workers.stop()
    assert (workers.status, workers.tries) == (1, 1)
    workers = Scarce(2)
    try:
        assert workers.start()
        first = workers.processes[0]
        assert first
        first.kill()
        asyncio.run(until(lambda: workers.tries == 3 and workers.processes[0] is not first))
    finally:
        workers.stop()
    assert [record.message for record in caplog.records if "cannot" in record.message] == 2 * [
        "worker 1 cannot be started: Cannot allocate memory"
    ]


def test_a_port_in_use_is_one_line(redis: RedisServer) -> None:
    """Also one that somebody shares with whoever wants to share it."""

    @on_a_loop
    async def body() -> None:
        with listeners("127.0.0.1", 0, 1)[0] as taken:
            words = ("sse", "--feed", redis.url, "--workers", 2, "--port", taken.getsockname()[1])
            async with command("servers", *words) as process:
                status, out, err = await ended(process)
                assert (status, out) == (2, "")
                assert re.fullmatch(r"python -m servers: no server at 127\.0\.0\.1:\d+: the port is in use\n", err)

    body()


def test_connections_are_spread_and_wait_for_their_worker() -> None:
    """Sockets of one port get connections each; what a client asks before a worker takes the socket is not refused."""
    sockets = listeners("127.0.0.1", 0, 2)
    with contextlib.ExitStack() as open_ones:
        for each in sockets:
            open_ones.enter_context(each).setblocking(False)
        clients = [open_ones.enter_context(socket.create_connection(sockets[0].getsockname())) for _ in range(64)]
        accepted = [0, 0]
        for number, each in enumerate(sockets):
            with contextlib.suppress(BlockingIOError):
                while True:
                    open_ones.enter_context(each.accept()[0])
                    accepted[number] += 1
        assert sum(accepted) == len(clients)
        assert min(accepted) > 8
