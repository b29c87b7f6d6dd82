"""The command line, as a process of its own: what it prints, what it serves, how it ends, what it refuses."""

import asyncio
import contextlib
import itertools
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.virtual import run_virtual
from servers.__main__ import build, main, parser
from tests.support import PATIENCE, SENTENCE, command, ended, on_a_loop, until, url_of
from tests.support_feed import READERS, client


@pytest.mark.parametrize(
    ("words", "sign"),
    [
        ("short-polling", signal.SIGINT),
        ("long-polling", signal.SIGTERM),
        ("websocket", signal.SIGINT),
        ("sse", signal.SIGTERM),
        ("long-polling --fast", signal.SIGINT),
        ("websocket --fast", signal.SIGTERM),
    ],
)
def test_a_watched_directory_is_announced_until_a_signal(words: str, sign: signal.Signals, tmp_path: Path) -> None:
    """The edits of a real directory reach a client; a signal ends command and open stream cleanly, with status 0."""
    (tmp_path / "there before").write_text("not news")
    model, *path = words.split()

    @on_a_loop
    async def body() -> None:
        async with command("servers", model, *path, "--port", "0", "--watch", str(tmp_path)) as process:
            url = await url_of(process, model)
            seen: list[tuple[str, str]] = []

            async def read() -> None:
                async for updates, _ in READERS[model](url, "0"):
                    seen.extend((update["change"], update["path"]) for update in updates)

            async def heard(expected: tuple[str, str]) -> None:
                await until(lambda: seen[-1:] == [expected] or reading.done())

            reading = asyncio.create_task(read())
            file = tmp_path / "a.csv"
            edits: list[tuple[Callable[[], object], tuple[str, str]]] = [
                (file.touch, ("added", "a.csv")),
                (lambda: file.write_text("one"), ("modified", "a.csv")),
                (file.unlink, ("deleted", "a.csv")),
            ]
            for edit, expected in edits:
                await asyncio.to_thread(edit)
                await heard(expected)
            assert not reading.done()
            # a file that is written in place is emptied first: on a slow machine that is seen, and told, for itself
            assert [update for update, _ in itertools.groupby(seen)] == [expected for _, expected in edits]
            process.send_signal(sign)
            async with asyncio.timeout(10):  # 2 s are promised on a machine that has nothing else to do
                assert await ended(process) == (0, "", "")
            (end,) = await asyncio.gather(reading, return_exceptions=True)
            # a stream ends; a poll was answered, and the next one finds nobody, or the connection being closed
            assert end is None if model in ("websocket", "sse") else isinstance(end, httpx.TransportError)

    body()


@on_a_loop
async def test_synthetic_updates_come_at_their_rate_and_a_second_signal_does_no_harm() -> None:
    """Without a directory a seeded schedule is served, the same for one seed; an impatient Ctrl-C is no traceback."""

    async def first(process: asyncio.subprocess.Process) -> list[dict[str, Any]]:
        url = await url_of(process, "long-polling")
        seen: list[dict[str, Any]] = []
        async with asyncio.timeout(PATIENCE), contextlib.aclosing(READERS["long-polling"](url, "0")) as answers:
            async for updates, _ in answers:
                seen += updates
                if len(seen) >= 20:
                    break
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert await ended(process) == (0, "", "")
        return [{key: value for key, value in update.items() if key != "published"} for update in seen[:20]]

    options = ("long-polling", "--port", "0", "--rate", "200", "--seed", "5", "--payload", "16")
    async with command("servers", *options) as one, command("servers", *options) as another:
        told = await asyncio.gather(first(one), first(another))
    assert told[0] == told[1]
    assert all(update["size"] == 16 for update in told[0] if update["change"] != "deleted")


def test_regular_updates_come_evenly_spaced() -> None:
    """With --rate 4 --regular there is one more update each quarter of a second, in virtual time exactly."""
    app = build(parser().parse_args(["sse", "--rate", "4", "--regular"]))

    async def main(_: object) -> list[int]:
        assert app.source
        source = asyncio.create_task(app.source())
        await asyncio.sleep(0.125)
        heads = []
        for _ in range(12):
            heads.append(app.feed.head)
            await asyncio.sleep(0.25)
        source.cancel()
        await asyncio.wait([source])
        return heads

    assert run_virtual(main) == list(range(12))


@on_a_loop
async def test_the_options_of_a_server_take_effect() -> None:
    """History, polling interval and address are those of the command line."""
    async with command(
        "servers", "short-polling", "--port", "0", "--rate", "500", "--history", "3", "--poll-interval", "0.25"
    ) as it:
        url = await url_of(it, "short-polling")
        async with client() as http:
            opening = await http.get(f"{url}/updates")
            assert opening.headers["x-poll-interval"] == "0.25"
            old = opening.json()["cursor"]

            async def status() -> int:
                return (await http.get(f"{url}/updates", params={"after": old})).status_code

            async with asyncio.timeout(PATIENCE):
                while await status() != 410:  # noqa: ASYNC110  # the condition changes in another process
                    await asyncio.sleep(0.01)
            assert 'updates_history{model="short polling"} 3.0' in (await http.get(f"{url}/metrics")).text
        it.send_signal(signal.SIGINT)
        assert await ended(it) == (0, "", "")


@on_a_loop
async def test_file_updates_serves_what_it_announces_and_leaves_out_what_it_is_told_to(tmp_path: Path) -> None:
    """The capstone's options take effect: token, limit of connections, of size, patterns, allow-list."""
    (tmp_path / "token").write_text("a-token-of-many-characters\n")
    (tmp_path / "dir").mkdir()
    for name, size in {"a.txt": 3, "b.tmp": 3, "large": 11}.items():
        (tmp_path / "dir" / name).write_bytes(bytes(size))
    options = ["--token-file", f"{tmp_path}/token", "--max-connections", "2", "--max-size", "10", "--ignore", "*.tmp"]
    options += ["--allow-origin", "https://hub.example"]
    async with command("servers", "file-updates", "--port", "0", "--watch", f"{tmp_path}/dir", *options) as it:
        url = await url_of(it, "file-updates")
        headers = {"Authorization": "Bearer a-token-of-many-characters", "Origin": "https://hub.example"}
        async with client() as http, contextlib.AsyncExitStack() as streams:
            assert (await http.get(f"{url}/files")).status_code == 401
            listing = await http.get(f"{url}/files", headers=headers)
            assert [file["path"] for file in listing.json()["files"]] == ["a.txt"]
            assert listing.headers["access-control-allow-origin"] == "https://hub.example"
            after = {"after": listing.json()["cursor"]}
            held = [
                await streams.enter_async_context(http.stream("GET", f"{url}/events", params=after, headers=headers))
                for _ in range(2)
            ]
            assert (await http.get(f"{url}/files", headers=headers)).status_code == 503
            await asyncio.to_thread((tmp_path / "dir" / "c.txt").write_text, "new")
            async with asyncio.timeout(PATIENCE):
                async for line in held[0].aiter_lines():
                    if '"path":"c.txt"' in line:
                        break
            it.send_signal(signal.SIGTERM)
            out, err = (await ended(it))[1:]
    assert out == ""
    assert err == "WARNING left out 'large': it is larger than 10 bytes\n"


@on_a_loop
async def test_ctrl_c_during_the_first_look_is_no_traceback(tmp_path: Path) -> None:
    """A huge directory takes its time before there is a listing; Ctrl-C ends the command then, too."""
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(32 * 2**30)  # takes no space, but a quarter of a minute and more to hash
    async with command("servers", "sse", "--port", "0", "--watch", str(tmp_path)) as process:

        def hashing() -> bool:
            held = Path(f"/proc/{process.pid}/fd")
            with contextlib.suppress(FileNotFoundError):  # of a descriptor closed meanwhile
                return any(descriptor.readlink().name == "huge" for descriptor in held.iterdir())
            return False

        await until(hashing)
        assert process.stdout
        assert SENTENCE.match((await process.stdout.readline()).decode())
        process.send_signal(signal.SIGINT)
        status, _, said = await ended(process)
        assert status == 0
        assert "Traceback" not in said


@on_a_loop
async def test_what_cannot_be_served_is_one_line_and_status_2(tmp_path: Path) -> None:
    """A bad option, a missing directory and a port in use are each one line on stderr, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = {
            ("sse", "--rate", "-1"): "python -m servers: argument --rate: a number from 0 up, not '-1'\n",
            ("sse", "--watch", f"{tmp_path}/no"): f"python -m servers: {tmp_path}/no: No such file or directory\n",
            ("sse", "--port", f"{port}"): f"python -m servers: no server at 127.0.0.1:{port}: the port is in use\n",
        }

        async def told(*arguments: str) -> tuple[int | None, str, str]:
            async with command("servers", *arguments) as process:
                return await ended(process)

        assert await asyncio.gather(*(told(*arguments) for arguments in refused)) == [
            (2, "", sentence) for sentence in refused.values()
        ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: MODEL"),
        (["smoke-signals"], "argument MODEL: invalid choice: 'smoke-signals'"),
        (["sse", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["sse", "two\nlines"], "unrecognized arguments: two\\nlines"),
        (["sse", "--port", "65536"], "argument --port: a whole number from 0 to 65535, not '65536'"),
        (["sse", "--port", "-1"], "argument --port: a whole number from 0 to 65535, not '-1'"),
        (["sse", "--port", "http"], "argument --port: a whole number from 0 to 65535, not 'http'"),
        (["sse", "--rate", "nan"], "argument --rate: a number from 0 up, not 'nan'"),
        (["sse", "--rate", "inf"], "argument --rate: a number from 0 up, not 'inf'"),
        (["sse", "--rate", "fast"], "argument --rate: a number from 0 up, not 'fast'"),
        (["sse", "--heartbeat", "0"], "argument --heartbeat: a number above 0, not '0'"),
        (["sse", "--poll-interval", "-5"], "argument --poll-interval: a number above 0, not '-5'"),
        (["sse", "--history", "0"], "argument --history: a whole number from 1 to 10000000, not '0'"),
        (["sse", "--history", "1.5"], "argument --history: a whole number from 1 to 10000000, not '1.5'"),
        (["sse", "--payload", "1048577"], "argument --payload: a whole number from 0 to 1048576, not '1048577'"),
        (["sse", "--token-file", "{token}"], "--token-file is for file-updates"),
        (["sse", "--no-coalesce"], "--no-coalesce is for file-updates"),
        (["sse", "--allow-origin", "https://hub.example"], "--allow-origin has no effect on sse"),
        (["websocket", "--allow-origin", "hub.example"], "argument --allow-origin: an origin like https://hub.example"),
        (["websocket", "--allow-origin", "https://hub.example/a"], "argument --allow-origin: an origin like"),
        (["file-updates", "--allow-origin", "*"], "argument --allow-origin: an origin like https://hub.example"),
        (["file-updates", "--max-connections", "0"], "argument --max-connections: a whole number from 1 to 1000000"),
        (["file-updates", "--max-size", "-1"], "argument --max-size: a whole number from 0 to"),
        (["sse", "--regular", "--watch", "."], "--regular spaces synthetic updates: not with --watch"),
        (["demo", "--regular"], "--regular spaces synthetic updates: not with --watch, and the demo has"),
        (["file-updates", "--fast"], "--fast is for the four models"),
        (["demo", "--fast"], "--fast is for the four models"),
        (["file-updates", "--max-size", "9"], "--ignore, --state and --max-size need --watch"),
        (["file-updates", "--ignore", "*.tmp"], "--ignore, --state and --max-size need --watch"),
        (["file-updates", "--token-file", "{file}"], "argument --token-file: {file}: a token is at least 16 printable"),
        (["file-updates", "--token-file", "{file}/x"], "argument --token-file: {file}/x: Not a directory"),
        (["sse", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["sse", "--rate", "1", "--watch", "."], "argument --watch: not allowed with argument --rate"),
        (["sse", "--watch", "{file}"], "{file}: Not a directory"),
        (["sse", "--watch", "{file}/below"], "{file}/below: Not a directory"),
        (["sse", "--port", "0", "--host", "192.0.2.1"], "no server at 192.0.2.1:0: cannot listen: "),
        (["sse", "--port", "0", "--host", "no such host"], "no server at no such host:0: cannot listen: "),
    ],
)
def test_a_mistake_is_named_in_one_line(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong with the arguments, the command says it on one line of stderr and exits with status 2."""
    file, token = tmp_path / "file", tmp_path / "token"
    file.touch()
    token.write_text(16 * "x")
    before = [signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(SystemExit) as caught:
            main([argument.format(file=file, token=token) for argument in arguments])
    finally:
        for sign, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(sign, handler)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith(f"python -m servers: {sentence.format(file=file)}")
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_a_token_in_the_environment_must_be_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable that holds no usable token is a mistake, never a server without protection."""
    monkeypatch.setenv("FILE_UPDATES_TOKEN", "")
    with pytest.raises(SystemExit) as caught:
        main(["file-updates", "--port", "0"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "python -m servers: FILE_UPDATES_TOKEN: a token is at least 16 printable ASCII characters, without a space\n"
    )


@pytest.mark.parametrize("model", ["sse", "file-updates"])
def test_a_source_that_fails_ends_the_command_after_its_streams_with_one_line_and_status_1(
    model: str, tmp_path: Path
) -> None:
    """A server that can tell no news any more does not go on as if there was none."""
    preamble = (
        "import asyncio, pathlib; from servers import sources\n"
        "async def failing(feed, edits):\n"
        f"    while not pathlib.Path('{tmp_path}/now').exists():\n"
        "        await asyncio.sleep(0.01)\n"
        "    raise OSError('the disk is gone')\n"
        "sources.play = failing\n"
    )

    @on_a_loop
    async def body() -> None:
        async with command("servers", model, "--port", "0", preamble=f"exec({preamble!r})") as process:
            url = await url_of(process, model)
            async with client() as http, http.stream("GET", f"{url}/events") as stream:
                assert (await http.get(f"{url}/healthz")).status_code == 200
                (tmp_path / "now").touch()
                async with asyncio.timeout(PATIENCE):
                    assert (await stream.aread()).startswith(b"retry:")  # to its end: it is not broken off
            assert await ended(process) == (1, "", "ERROR the source of updates failed: the disk is gone\n")

    body()


def test_an_origin_is_what_browsers_send() -> None:
    """However an operator writes it."""
    for text in ("https://hub.example", "https://hub.example/", "HTTPS://Hub.Example", "https://hub.example:443"):
        assert parser().parse_args(["websocket", "--allow-origin", text]).allow_origin == ["https://hub.example"]
    assert parser().parse_args(["demo", "--allow-origin", "http://[::1]:8000"]).allow_origin == ["http://[::1]:8000"]


@pytest.mark.parametrize("streams", ["0", "1", "2", "0 1 2"])
def test_a_command_without_standard_streams_serves_and_stops(streams: str) -> None:
    """Whoever starts it may have closed stdin, stdout or stderr: no socket takes their place."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    close = "; ".join(f"os.close({stream})" for stream in streams.split())

    @on_a_loop
    async def body() -> None:
        async with command("servers", "sse", "--port", port, preamble=f"import os; {close}") as process:

            async def healthy() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    async with client() as http:
                        return (await http.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
                return False

            async with asyncio.timeout(PATIENCE):
                while not await healthy():  # noqa: ASYNC110  # another process
                    await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert (await ended(process))[0] == 0

    body()
