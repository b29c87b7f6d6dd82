"""Raw clients count what comes and goes; servers in processes of their own are measured from outside."""

import asyncio
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lab.cost import ladder, measuring, processes
from lab.cost.load import ANSWER_LIMIT, Load, RawClient, Socket, Stream, frames
from lab.cost.measuring import compared
from lab.cost.processes import ServerProcess, Window
from lab.proxies.wire import Wire
from lab.virtual import Net, run_virtual
from lab.virtual import serve as serve_virtually
from servers import short_polling, websocket
from servers.background import serve
from servers.feed import Feed
from servers.models import MODELS
from servers.service import Service
from tests.support import on_a_loop, until

MAKE = {model.slug: model.create_app for model in MODELS}


@pytest.mark.parametrize("model", MAKE)
@on_a_loop
async def test_load_counts_what_comes(model: str) -> None:
    """Every update is counted once for each client, and requests and bytes are the server's and the wire's."""
    feed = Feed()
    with serve(MAKE[model](feed)) as server, Wire(server.url) as wire:
        load = Load(model, wire.url, interval=0.02)
        await load.connect(3)
        assert isinstance(server.app, Service)
        traffic = server.app.traffic
        await until(lambda: load.down and traffic.requests >= 3 and load.open == 3)
        if model.endswith("polling"):
            await until(lambda: all(client.cursor for client in load.clients))  # type: ignore[attr-defined]  # a Poll
        else:
            await until(lambda: load.down == wire.bytes["down"] > 300)  # the opening blocks, or the hellos
        for number in range(4):
            feed.publish(f"notes/{number}.txt", "added", size=1, sha256="0" * 64)
        await until(lambda: load.deliveries == 12)
        load.close()
        await until(lambda: load.open == 0 and wire.bytes["up"] == load.up)
        await until(lambda: load.requests == traffic.requests)
        assert load.deliveries == 12
        assert load.down <= wire.bytes["down"]
        assert (load.requests == 3) is (not model.endswith("polling"))


@on_a_loop
async def test_a_quiet_poll_is_answered_304() -> None:
    """The polling client sends the entity tag of the last answer, so an answer without news has no body."""
    with serve(short_polling.create_app(Feed())) as server, Wire(server.url, transcript=True) as wire:
        load = Load("short-polling", wire.url, interval=0.01)
        await load.connect(1)
        await until(lambda: load.requests > 5)
        load.close()
        assert wire.transcript is not None
        answers = [row.data for row in wire.transcript if row.way == "down" and row.kind == "DATA"]
    assert answers[0].startswith(b"HTTP/1.1 200")
    assert all(answer.startswith(b"HTTP/1.1 304") for answer in answers[1:])


def test_socket_answers_pings() -> None:
    """A WebSocket of the load stays connected for longer than a silent one would. In virtual time."""

    async def main(_: Net) -> tuple[int, int]:
        async with serve_virtually(websocket.create_app(Feed(), heartbeat=15), port=8000) as server:
            load = Load("websocket", server.url)
            await load.connect(2)
            await asyncio.sleep(100)
            found = load.open, load.beats
            load.close()
            return found

    assert run_virtual(main) == (2, 12)


@on_a_loop
async def test_socket_talks() -> None:
    """What a WebSocket of the load says is answered, and the answers are counted."""
    with serve(websocket.create_app(Feed())) as server, Wire(server.url, transcript=True) as wire:
        load = Load("websocket", wire.url, talk=0.01)
        await load.connect(2)
        await until(lambda: load.messages >= 10)
        assert load.open == 2
        assert wire.transcript is not None
        up = b"".join(row.data for row in wire.transcript if (row.connection, row.way) == (1, "up"))
        said = up.partition(b"\r\n\r\n")[2]
        assert len(said) % 43 == 0 < len(said)
        load.close()


def fed(client: RawClient, data: bytes, size: int) -> Load:
    """The load of a client that gets the data in pieces."""
    client.transport = None  # type: ignore[assignment]  # it has nothing to answer
    for start in range(0, len(data), size):
        client.data_received(data[start : start + size])
    return client.load


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
def test_chunks_do_not_change_counts(size: int) -> None:
    """However the bytes arrive, the same updates and heartbeats are counted."""
    update = b'event: update\nid: a-1\ndata: {"seq":1,"path":"x"}\n\n'
    stream = Stream(Load("sse", "http://127.0.0.1:80"))
    load = fed(stream, b"HTTP/1.1 200 OK\r\n\r\n" + update * 3 + b": heartbeat\n\n" + update, size)
    assert (load.deliveries, load.beats) == (4, 1)

    small, large = b'{"seq":1}', b'{"updates":[' + b",".join([b'{"seq":1}'] * 30) + b"]}"
    huge = b'{"seq":1}' + b" " * 70_000
    sent = bytes([0x81, len(small)]) + small + b"\x81\x7e" + len(large).to_bytes(2) + large
    sent += b"\x81\x7f" + len(huge).to_bytes(8) + huge
    socket = Socket(Load("websocket", "http://127.0.0.1:80"))
    assert fed(socket, b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + sent, max(size, 50)).deliveries == 32


def test_frames_stop_at_what_is_not_whole() -> None:
    """A frame is given out when its last byte is there, and not before."""
    whole = b"\x81\x02hi"
    assert [(payload, rest) for _, payload, rest in frames(whole + whole[:3])] == [(b"hi", b"\x81\x02h")]
    assert list(frames(b"\x81")) == list(frames(b"\x81\x7e\x00")) == []


def test_server_process_runs_while_its_block_does() -> None:
    """Within the block a process serves at the URL; after it the process has ended."""
    with ServerProcess("sse", rate=1e-5) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.memory > 2**20
        assert 0 < server.cpu < 60
        account = psutil.Process(server.process.pid)
    assert not account.is_running()


def test_a_server_process_takes_flags_and_other_commands() -> None:
    """An option that is True is a flag; another module's server is started in the same way."""
    flag = ServerProcess("sse", rate=2, regular=True, poll_interval=0.5)
    assert flag.command[1:6] == ["-m", "servers", "sse", "--port", "0"]
    assert flag.command[6:] == ["--rate=2", "--regular", "--poll-interval=0.5"]
    assert ServerProcess("sse", regular=False, watch="my_files").command[6:] == ["--watch=my_files"]
    with ServerProcess("woken", module="lab.cost.ladder", rate=2) as server:
        assert server.url.startswith("http://127.0.0.1:")


def test_a_server_process_takes_whole_numbers() -> None:
    """A whole number is passed on as one, so that every option of the command line can be given."""
    with ServerProcess("sse", seed=1, history=100, rate=1e-5) as server:
        assert server.url.startswith("http://127.0.0.1:")


def test_a_chatty_server_is_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says more than a pipe holds goes on all the same; of what it said the last lines are kept."""
    said = tmp_path / "said"
    (tmp_path / "chatty.py").write_text(
        "import time\nprint('chatty at http://127.0.0.1:1', flush=True)\n"
        "for n in range(20_000): print('line', n)\nprint(end='', flush=True)\n"
        f"open({str(said)!r}, 'w').close()\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = ServerProcess("any", module="chatty")
    with server:
        deadline = time.monotonic() + 60
        while not said.exists():
            assert time.monotonic() < deadline, "it waits for somebody to read"
            time.sleep(0.01)
    assert list(server.said)[-1] == "line 19999\n"
    assert len(server.said) < 100


def test_an_unknown_model_is_nothing_to_measure() -> None:
    """A model that is none is refused by name, not taken for another one; so is a load that cannot be."""
    with pytest.raises(ValueError, match=r"^no model is called 'http-streaming': there are "):
        Load("http-streaming", "http://127.0.0.1:80")
    with pytest.raises(ValueError, match=r"^no model is called 'NDJSON': there are "):
        asyncio.run(measuring.measure(["NDJSON"]))
    with pytest.raises(ValueError, match="host and a port"):
        Load("sse", "http://127.0.0.1")
    for wrong in ({"interval": 0}, {"wait": math.inf}, {"talk": -1}):
        with pytest.raises(ValueError, match=" is a number "):
            Load("sse", "http://127.0.0.1:80", **wrong)


def test_a_server_that_does_not_start_says_why() -> None:
    """A refused option is in the error, and no process is left behind."""
    with pytest.raises(RuntimeError, match=r"no server for sse: .*--heartbeat: a number above 0"):
        ServerProcess("sse", heartbeat=-1).__enter__()


def test_cpu_time_of_another_process_is_what_it_used() -> None:
    """What is read from outside grows with what a process computes, about as psutil's coarser reading does."""
    code = (
        "import time\nprint('on', flush=True)\nwhile time.process_time() < 0.5: pass\nprint('off', flush=True)\ninput()"
    )
    with psutil.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "on\n"
        before = processes.cpu_seconds(process)
        assert process.stdout.readline() == "off\n"
        used = processes.cpu_seconds(process)
        assert 0.5 <= used < 2
        assert before < used
        assert abs(used - sum(process.cpu_times()[:2])) < 0.1
        process.stdin.close()
        process.wait(10)


def test_resolution() -> None:
    """The account of CPU time is kept in steps of a sixtieth of a second or finer."""
    assert 0 < processes.cpu_resolution() <= 1 / 60


def window(connections: int, cpu: float, **counts: int) -> Window:
    """A window of two seconds."""
    none = dict.fromkeys(processes.COUNTED, 0)
    return Window(connections, 2.0, cpu, 1000 + 10 * connections, floor=0.0, **(none | counts))


def polled(*, spoilt: float = 0.0) -> tuple[tuple[Window, ...], ...]:
    """A server that takes 1 ms a poll, 2 µs an update inside, and a twentieth of a core alone; one window is spoilt."""
    quiet = [window(n, 0.1 + 0.001 * 3 * n, requests=3 * n, up=300 * n, down=600 * n) for n in (0, 5, 10, 0, 5, 10)]
    quiet[4] = replace(quiet[4], cpu=quiet[4].cpu + spoilt)
    loaded = [
        window(n, 0.2 + 0.003 * n + 0.0004 * n, requests=3 * n, deliveries=200 * n, up=300 * n, down=36_600 * n)
        for n in (0, 10, 0, 10)
    ]
    return tuple(quiet), tuple(loaded)


@pytest.mark.parametrize("spoilt", [0.0, 0.2])
def test_a_cost_is_what_one_more_takes(spoilt: float) -> None:
    """Costs come apart from each other and from the idle server's, also when one window is spoilt."""
    found = measuring.result("short polling", measuring.TEACHING, polled(spoilt=spoilt))
    assert found.cpu["requests"].value == pytest.approx(1e-3, rel=0.02)
    assert found.cpu["deliveries"].value == pytest.approx(2e-6, rel=0.1)
    assert found.cpu["requests"].low < 1e-3 < found.cpu["requests"].high
    assert (found.units.request.up, found.units.request.down) == (100, 200)
    assert found.units.delivery.down == pytest.approx(180)
    assert found.memory.value == 10


def test_a_message_takes_what_goes_up_besides_pongs() -> None:
    """Of a window in which clients talk, what their answers to pings take is not the messages'."""
    ramp = tuple(window(n, 0.1 + 0.001 * n, deliveries=100 * n, down=18_000 * n) for n in (0, 40, 100))
    beating = window(100, 0.2, beats=200, up=200 * 10, down=200 * 6)
    talking = window(100, 0.3, beats=400, messages=1000, up=400 * 10 + 43_000, down=400 * 6 + 60_000)
    found = measuring.result("WebSocket", measuring.TEACHING, (ramp, (window(0, 0.1), beating, talking)))
    assert (found.units.message.up, found.units.message.down) == (43, 60)


def test_no_interval_is_narrower_than_what_runs_differ_by() -> None:
    """Windows without any scatter still say that another run would differ, and only what lies further is told apart."""
    cost = measuring.result("short polling", measuring.TEACHING, polled()).cpu["requests"]
    assert cost.high / cost.value >= measuring.RUNS_DIFFER <= 1.0001 * cost.value / cost.low
    near, far = (cost._replace(value=cost.value * by, low=cost.low * by, high=cost.high * by) for by in (1.5, 2.1))
    assert near.high > far.low
    assert cost.high > far.low, "another run may have it so, but not this one"
    assert not cost.apart(near)
    assert (cost.below(near), cost.below(far), far.below(cost)) == (None, True, False)
    assert compared("this", cost, "that", near) == "not told apart"
    assert compared("this", cost, "that", far) == "this is cheaper"
    assert compared("that", far, "this", cost) == "this is cheaper"
    poll = measuring.result("short polling", measuring.TEACHING, polled())
    dear = replace(poll, column=measuring.LIMIT, cpu={"requests": far})
    assert measuring.cheaper(dear, poll) == "as tutorials write it is cheaper"
    assert measuring.cheaper(poll, replace(dear, model="SSE"), "memory") == "not told apart"


def test_a_small_cost_beside_a_large_one_is_known_badly() -> None:
    """What runs differ by is a share of the whole: 2 µs an update inside beside 1 ms a poll may be nothing, or 20."""
    cost = measuring.result("short polling", measuring.TEACHING, polled()).cpu["deliveries"]
    assert cost.low == 0
    slack = (1 - measuring.SHARED / measuring.RUNS_DIFFER) * (2e-6 + 1e-3 * 3 / 200)
    assert cost.high == pytest.approx(measuring.SHARED * (2e-6 + slack), rel=0.05)


def test_what_comes_out_below_nothing_is_nothing() -> None:
    """No unit has a negative cost, however noisy the windows."""
    ramp = tuple(window(n, 0.9 - 0.01 * n, deliveries=50 * n, down=5000 * n) for n in (0, 5, 10, 0, 5, 10))
    beating = (window(0, 0.9), window(10, 0.1, beats=10, down=180))
    found = measuring.result("SSE", measuring.TEACHING, (ramp, beating))
    assert found.units.delivery.cpu == found.units.held.cpu == 0
    assert all(0 <= interval.low <= interval.value <= interval.high for interval in found.cpu.values())


@pytest.mark.timeout(320)
def test_measure() -> None:
    """All models are measured in turn, in processes of their own: bytes exactly, CPU time above nothing."""
    found = asyncio.run(asyncio.wait_for(measuring.measure(seconds=0.2, passes=1), 300))
    units, fast = [measuring.in_column(found, column) for column in measuring.COLUMNS]
    assert set(units) == set(fast) == {model.name for model in MODELS}
    for each in found:
        assert [w.connections for w in each.ramp] == [0, 40, 100]
        assert each.ramp[0].up == each.ramp[0].down == 0
        assert each.memory.value > 0
        assert 0 <= each.others <= 1
    for own in (units, fast):
        assert own["WebSocket"].held.down > 0
        assert own["SSE"].held.down > 0
        assert own["WebSocket"].message.up > 0
    assert fast["SSE"].message == units["SSE"].message
    socket, stream, poll = units["WebSocket"], units["SSE"], units["short polling"]
    assert stream.message.up > 0
    assert stream.message == poll.message == units["long polling"].message
    assert 150 < poll.delivery.down < 250
    assert 100 < socket.delivery.down < 400
    assert 100 < stream.delivery.down < 400


@on_a_loop
async def test_speaker_posts_what_it_says() -> None:
    """Beside an event stream a message up is a POST with a JSON body, and each is answered."""
    with serve(ladder.talking(Feed())) as server, Wire(server.url, transcript=True) as wire:
        load = Load("sse", wire.url, talk=0.01)
        await load.connect(2)
        await until(lambda: load.messages >= 10)
        load.close()
        assert wire.transcript is not None
        said = [row.data for row in wire.transcript if row.way == "up" and row.kind == "DATA"]
    assert said[0].startswith(b"POST /say HTTP/1.1")
    assert said[0].endswith(b'{"type":"filter","id":1,"paths":[""]}')


@on_a_loop
async def test_a_lost_connection_is_no_measurement() -> None:
    """A window in which a client was cut off raises instead of dividing by the wrong number."""
    with ServerProcess("sse", rate=1e-5) as server:
        clients = Load("sse", server.url)
        await clients.connect(2)
        asyncio.get_running_loop().call_later(0.1, clients.clients[0].transport.abort)
        with pytest.raises(RuntimeError, match="sse: 1 of 2 connections are left"):
            await processes.observe(server, clients, 2, 0.2)
        clients.close()


@on_a_loop
async def test_a_window_lasts_until_what_it_is_about_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is shorter than its news is rare goes on to the first; what never comes is said, not divided by."""
    with ServerProcess("sse", rate=2, regular=True) as server:
        clients = Load("sse", server.url)
        windows = [await processes.observe(server, clients, n, 0.001, due=["deliveries"]) for n in (0, 1, 1, 1)]
        monkeypatch.setattr(processes, "ANSWER_LIMIT", 0.1)
        with pytest.raises(RuntimeError, match=r"beats and no messages in \d+ s"):
            await processes.observe(server, clients, 1, 0.001, due=["deliveries", "beats", "messages"])
        clients.close()
    assert windows[0].seconds < ANSWER_LIMIT / 2  # it has waited for nothing
    assert [w.deliveries >= 1 for w in windows] == [False, True, True, True]


def test_a_busy_machine_is_said_to_be_busy() -> None:
    """A window on a loop that was late is marked, and a measurement says what others took during its windows."""
    quiet, loaded = polled()
    assert replace(quiet[0], floor=1.0).busy
    assert not quiet[0].busy
    assert replace(quiet[0], others=0.6).busy
    taken = (replace(quiet[0], others=0.6), *quiet[1:])
    assert measuring.result("short polling", measuring.TEACHING, (taken, loaded)).others == pytest.approx(0.06)


def test_no_processor_sleeps_while_servers_are_measured() -> None:
    """Loops that give way to everybody keep every processor at work, are not taken for work, and end with the block."""
    before = {child.pid for child in psutil.Process().children()}
    with processes.kept_awake():
        loops = [child for child in psutil.Process().children() if child.pid not in before]
        assert len(loops) == min(processes.CPUS, processes.AWAKE)
        if sys.platform != "win32":
            assert all(loop.nice() == 19 for loop in loops)
        deadline = time.monotonic() + 60
        while any(sum(loop.cpu_times()[:2]) < 0.05 for loop in loops):
            assert time.monotonic() < deadline, "they do not run"
            time.sleep(0.01)
    assert not any(loop.is_running() for loop in loops)
