"""Views of a wire: the protocol as the server's file draws it, frames, flights; titles and texts say what is drawn."""

import asyncio
import json
from types import ModuleType

import numpy as np
import pytest
import websockets

from lab.bench.result import VIRTUAL, Delivery, Publication, Request, Run
from lab.bench.schedule import Schedule
from lab.figures import Picture, wire_views
from lab.theory.framing import frame
from lab.virtual import Link, Net, run_virtual, serve
from servers import long_polling, short_polling, sse, websocket
from servers.feed import Feed

KEY = bytes.fromhex("37fa213d")
UP, DOWN = "client → server", "server → client"


def title(picture: Picture) -> str:
    return " ".join(picture.get_suptitle().split())


def texts(picture: Picture) -> list[str]:
    return [text.get_text() for text in picture.axes[0].texts]


def test_the_messages_are_those_of_the_servers_docstring() -> None:
    """The drawing at a server's head becomes a table: who says what to whom, and when."""
    rows = wire_views.messages(websocket).rows
    assert rows[0] == (UP, "GET /ws?after=C, Upgrade: websocket", "")
    assert rows[1] == (DOWN, '101, {"type": "hello", "cursor": C}', "")
    assert (UP, '{"type": "filter", "id": 1, "paths": ["reports/"]}', "at any moment") in rows
    kinds = {
        word for _, said, _ in rows for word in ("hello", "updates", "filter", "filtered", "reset") if word in said
    }
    assert kinds == {"hello", "updates", "filter", "filtered", "reset"}


@pytest.mark.parametrize("server", [short_polling, long_polling, websocket, sse], ids=lambda server: server.__name__)
def test_every_model_draws_its_messages(server: ModuleType) -> None:
    """Each model's file has a drawing, which begins with the client's question and has an answer."""
    rows = wire_views.messages(server).rows
    assert rows[0][0] == UP
    assert rows[0][1].startswith("GET /")
    assert rows[1][0] == DOWN
    assert all(said for _, said, _ in rows)


def test_no_drawing_is_an_error() -> None:
    """A module whose docstring draws nothing is refused by name."""
    with pytest.raises(ValueError, match=r"servers\.feed draws no messages"):
        wire_views.messages(ModuleType("servers.feed", "A log."))


def test_a_table_of_messages_is_escaped() -> None:
    """What stands in a message is text, not HTML."""
    table = wire_views.Messages([(UP, "<b>", "a & b")])
    assert "<code>&lt;b&gt;</code>" in table._repr_html_()
    assert "a &amp; b" in table._repr_html_()


def test_anatomy_names_every_byte_and_reads_the_first_two() -> None:
    """Each byte stands in its place, and the words below say mask and length, for all three length fields."""
    sizes = {"short": 45, "medium": 300, "long": 70_000}
    rows = {name: frame(b"x" * size, KEY if name == "short" else None) for name, size in sizes.items()}
    picture = wire_views.anatomy(rows)
    assert texts(picture)[:6] == ["81", "ad", "37", "fa", "21", "3d"]
    for words in (
        "ad: masked, length 45",
        "7e: not masked, 126: length in 2 bytes, 300",
        "127: length in 8 bytes, 70,000",
    ):
        assert any(words in text for text in texts(picture))
        assert words in picture.alt
    assert title(picture).startswith("A client's frame is masked")


def test_anatomy_claims_no_mask_where_there_is_none() -> None:
    """The title speaks of a client's frame only if there is one."""
    assert title(wire_views.anatomy({"server": frame(b"hello")})) == "Frames"


async def _conversation(net: Net) -> Net:
    feed = Feed()
    async with (
        serve(websocket.create_app(feed)) as server,
        websockets.connect(f"{server.url.replace('http', 'ws')}/ws", proxy=None, compression=None) as socket,
    ):
        await socket.recv()
        feed.publish("a/1")
        await socket.recv()
        await socket.send(json.dumps({"type": "filter", "id": 1, "paths": ["a/"]}))
        await socket.recv()
    await asyncio.sleep(1)
    return net


def test_flights_are_what_was_said() -> None:
    """A transcript becomes the messages of both sides in order, each one transit long, and a slope for each."""
    transcript = run_virtual(_conversation, link=Link(delay=0.1)).transcript
    assert transcript is not None
    flights = wire_views.spoken(transcript)
    said = [(flight.way, flight.kind) for flight in flights]
    assert said == [
        ("up", "GET"),
        ("down", "101"),
        ("down", "hello"),
        ("down", "a"),
        ("up", "filter"),
        ("down", "filtered"),
        ("up", "close"),
        ("down", "close"),
    ]
    assert all(flight.due - flight.sent == pytest.approx(0.1) for flight in flights)
    picture = wire_views.spacetime(transcript, "A life")
    assert len(picture.axes[0].lines) == len(flights)
    assert "8 messages" in picture.alt
    assert "filter up, filtered down" in picture.alt


def test_deflates_title_is_computed() -> None:
    """The title says what is saved, and how much of that by the memory."""
    picture = wire_views.deflated([100, 100], [80, 80], [40, 40])
    assert title(picture) == "Deflate saves 60% of repeated JSON, 67% of that by its memory"
    assert "100 without deflate, 80 alone, 40 with memory" in picture.alt


@pytest.mark.parametrize("period", [20, 5])
def test_the_saw_tooth_says_what_it_shows(period: int) -> None:
    """Title and text have the shortest and the longest time that was measured, whatever the period."""
    deaths = np.arange(0.5, 4 * period, 0.5)

    def law(x: float) -> float:
        return (x // period + 2) * period

    picture = wire_views.saw_tooth(deaths, [law(x) for x in deaths], law, period)
    assert title(picture) == f"A dead link is noticed {period + 0.5:.0f} to {2 * period:.0f} seconds later"
    assert f"a tooth each {period} s" in picture.alt


def run_of(label: str, late: float, missing: int = 0) -> Run:
    """Two clients and four updates; client 0 has them at once, client 1 `late` s later, without the last ones."""
    published = [Publication(seq, float(seq), float(seq), f"{seq}") for seq in range(1, 5)]
    deliveries = [Delivery(0, seq, seq + 0.1) for seq in range(1, 5)]
    deliveries += [Delivery(1, seq, seq + late) for seq in range(1, 5 - missing)]
    return Run(
        model="WebSocket",
        label=label,
        mode=VIRTUAL,
        clients=2,
        schedule=Schedule.at([1, 2, 3, 4], 5),
        begin=0,
        end=9,
        server_requests=2,
        published=published,
        all_requests=[Request(n, 0, 9, 4, False) for n in range(2)],
        all_deliveries=deliveries,
    )


def test_who_waits_for_a_slow_client_is_computed() -> None:
    """The title has the longest delay of the others in each run, and what never came is no delay."""
    picture = wire_views.in_hand([run_of("loop", 3.0), run_of("cursor", 0.025)])
    assert "Loop: the others wait 3 s at most; cursor: the others wait 25 ms at most" in title(picture)
    assert wire_views.longest_delay(run_of("loop", 3.0), without=1) == pytest.approx(0.1)
    assert "the others never get all" in title(wire_views.in_hand([run_of("loop", 1.0, missing=1)]))
    assert len(picture.axes[0].lines) == 4
