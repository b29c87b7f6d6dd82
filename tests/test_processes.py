"""Raw clients count what comes and goes; servers in processes of their own are measured from outside."""

import asyncio
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lab.cost import processes
from lab.cost.load import Load, RawClient, Socket, Stream, frames
from lab.cost.processes import Line, Measured, ServerProcess, Window, measure
from lab.proxies.wire import Wire
from lab.theory import Resources, Units
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
        assert load.deliveries == 12
        assert load.requests == traffic.requests
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


@on_a_loop
async def test_socket_answers_pings() -> None:
    """A WebSocket of the load stays connected for longer than a silent one would."""
    with serve(websocket.create_app(Feed(), heartbeat=0.05)) as server:
        load = Load("websocket", server.url)
        await load.connect(2)
        await until(lambda: load.beats >= 20)
        assert load.open == 2
        load.close()


@on_a_loop
async def test_socket_talks() -> None:
    """What a WebSocket of the load says is answered, and the answers are counted."""
    with serve(websocket.create_app(Feed())) as server:
        load = Load("websocket", server.url, talk=0.01)
        await load.connect(2)
        await until(lambda: load.messages >= 10)
        assert load.open == 2
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
        asyncio.run(measure("NDJSON"))
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


def test_line_is_the_least_squares() -> None:
    """Points on a line give the line without error; scattered ones the textbook's slope and standard error."""
    exact = Line.through([0, 1, 2, 5], [3, 5, 7, 13])
    assert exact == pytest.approx((2, 3, 0), abs=1e-9)
    scattered = Line.through([0, 1, 2], [0, 2, 1])
    assert scattered == pytest.approx((0.5, 0.5, math.sqrt(1.5 / 2)))


def test_no_slope_is_surer_than_its_instrument() -> None:
    """The error is at least what the reading's own steps make of it."""
    assert Line.through([0, 5, 10], [0, 5, 10], resolution=0.2).error == pytest.approx(0.02)


def window(connections: int, cpu: float, **counts: int) -> Window:
    """A window of two seconds."""
    none = dict.fromkeys(processes.COUNTED, 0)
    return Window(connections, 2.0, cpu, 1000 + 10 * connections, floor=0.0, **(none | counts))


RAMP = [window(n, 0.1 + 0.003 * n, requests=3 * n, deliveries=10 * n, up=300 * n, down=600 * n) for n in (0, 5, 10)]


def measured(model: str, extra: list[Window], per: str = "requests") -> Measured:
    """What these windows make of a model."""
    work = [getattr(w, per) / w.seconds for w in RAMP]
    cpu = Line.through(work, [w.cpu / w.seconds for w in RAMP])
    memory = Line.through([w.connections for w in RAMP], [w.memory for w in RAMP])
    return Measured(model, per, RAMP, extra, cpu, memory, processes._units(model, RAMP, extra, cpu, memory))


def test_units_leave_out_what_the_server_needs_alone() -> None:
    """A unit's cost is the slope, and beside polls and heartbeats what is left after an empty server's share."""
    loaded = [
        window(0, 0.2),
        window(10, 0.2 + 0.03 + 0.004, requests=30, deliveries=2000, up=3000, down=6000 + 360_000),
    ]
    polls = measured("short polling", loaded).units
    assert polls.request.cpu == pytest.approx(1e-3)
    assert (polls.request.up, polls.request.down) == (100, 200)
    assert polls.delivery.cpu == pytest.approx(0.004 / 2000)
    assert polls.delivery.down == pytest.approx(180)
    assert polls.held == Resources(memory=pytest.approx(10))

    beating = [window(0, 0.1), window(10, 0.1 + 0.02, beats=200, up=2000, down=1000)]
    talking = [window(0, 0.1), window(10, 0.1 + 0.05, messages=1000, up=43_000, down=55_000)]
    stream = measured("SSE", beating, "deliveries").units
    assert stream.request == Resources()
    assert stream.delivery == Resources(cpu=pytest.approx(3e-4), down=60)
    assert stream.held.cpu == pytest.approx(0.02 / 200 / 15)
    assert stream.held.down == pytest.approx(5 / 15)
    socket = measured("WebSocket", beating + talking, "deliveries").units
    assert socket.message == Resources(cpu=pytest.approx(5e-5), up=43, down=55)


def test_what_comes_out_below_nothing_is_nothing() -> None:
    """No unit has a negative cost, however noisy the windows."""
    noisy = [window(0, 0.9), window(10, 0.1, requests=30, deliveries=2000, up=3000, down=366_000, beats=10, messages=1)]
    assert measured("short polling", noisy).units.delivery.cpu == 0
    assert measured("WebSocket", noisy + noisy, "deliveries").units.message.cpu == 0
    assert measured("SSE", noisy, "deliveries").units.held.cpu == 0


def test_a_long_poll_is_its_answer_without_the_update() -> None:
    """A long poll's request is measured with an update in it, whose cost beside polls is taken off again."""
    loaded = [window(0, 0.2), window(10, 0.2 + 0.03 + 0.004, requests=30, deliveries=2000, up=3000, down=366_000)]
    beating = [window(0, 0.1), window(10, 0.12, beats=200)]
    units = processes.shared(
        [measured("short polling", loaded), measured("long polling", []), measured("SSE", beating, "deliveries")]
    )
    poll, held, stream = units["short polling"], units["long polling"], units["SSE"]
    assert held.request.cpu == pytest.approx(1e-3 - poll.delivery.cpu)
    assert held.request.down == pytest.approx(200 - 180)
    assert held.delivery == poll.delivery
    assert held.message == stream.message == poll.request


@pytest.mark.parametrize("model", [model.name for model in MODELS])
@on_a_loop
async def test_measure(model: str) -> None:
    """Each model is measured in processes of its own: its bytes exactly, its CPU time above nothing."""
    result = await processes.measure(model, seconds=0.5, counts=(0, 5, 10))
    assert [w.connections for w in result.ramp] == [0, 5, 10]
    assert isinstance(result.units, Units)
    main = result.units.request if result.per == "requests" else result.units.delivery
    assert result.ramp[-1].cpu > 0
    assert 0 <= main.cpu < 0.1  # a slope over so short a time may come out as nothing on a busy machine
    assert 100 < main.down < 500
    assert result.ramp[0].up == result.ramp[0].down == 0
    if model == "WebSocket":
        assert 43 <= result.units.message.up < 2 * 43  # more than 43 if answers are on their way when it ends
        assert result.units.message.down == pytest.approx(55, abs=4)
    if model == "short polling":
        assert 150 < result.units.delivery.down < 250


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


def test_a_busy_machine_is_said_to_be_busy() -> None:
    """A window on a loop that was late is marked, and so is the measurement that has it."""
    late = replace(RAMP[0], floor=1.0)
    assert late.busy
    assert not RAMP[0].busy
    assert measured("long polling", [late]).busy
    assert not measured("long polling", []).busy
