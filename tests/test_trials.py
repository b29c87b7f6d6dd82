"""Notebook 05's trials: what is counted is what happened, and a flip is believed only where the counts are clear."""

import asyncio
import math
import socket
import struct
import sys

import pytest

from lab import theory
from lab.bench import Schedule
from lab.cost import Bills, cases, counted, trials
from lab.cost.decision import REFERENCE
from lab.theory import LONG, MODELS, SHORT, SOCKET, STREAM
from servers import Feed, serve
from servers.tree import Edit

NEWS = Schedule.poisson(2.0, seconds=10, seed=5)


@pytest.mark.parametrize("model", [STREAM, SOCKET])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_conversation_keeps_to_its_share(model: str, share: float) -> None:
    """Clients say so many messages for each update that they get: frames on a WebSocket, POSTs beside a stream."""
    run, said = trials.conversation(model, share, NEWS, 0.025)
    assert said == math.ceil(share * len(NEWS))
    assert len(run.first_deliveries) == len(NEWS)
    assert run.requests == 1


def test_a_file_is_heavier_inline_where_few_want_it() -> None:
    """Inline weighs a third more than the file, for everybody; announced, only who wants it is sent it."""
    size, base = 30_000, trials.transported(0, 0.0, 0.025, inline=False)
    inline = trials.transported(size, 0.25, 0.025, inline=True) - base
    announced = trials.transported(size, 0.25, 0.025, inline=False) - base
    assert inline == pytest.approx(4 / 3 * size, rel=0.01)
    assert announced == pytest.approx(size / 4, rel=0.05)


def test_counts_are_the_laws() -> None:
    """A run of short polling, counted, is the law's work, with each update once."""
    followers = {SHORT: trials.follow(SHORT, interval=0.5)}
    [run] = trials.pulled_and_pushed((SHORT,), {1.0: NEWS}, followers, 0.01)[SHORT].values()
    law = theory.work(SHORT, len(NEWS) / NEWS.seconds, interval=0.5)
    work = counted(run)
    assert work.requests == pytest.approx(law.requests, rel=0.1)
    assert work.deliveries == pytest.approx(law.deliveries)


def test_rare_news_is_asked_for_as_often_as_the_law_says() -> None:
    """Our server shortens each hold at random: over hours of silence the law of a long poll's work has that in it."""
    hour = Schedule("one update", 3600.0, (Edit(3599.0, "a", "added"),))
    [run] = trials.pulled_and_pushed((LONG,), {0.0: hour}, {LONG: trials.follow(LONG)}, 0.025)[LONG].values()
    assert counted(run).requests == pytest.approx(theory.work(LONG, 1 / 3600, rtt=0.05).requests, rel=0.01)


def test_streams_end_from_either_side() -> None:
    """A server lets go of a stream whose client left, and a WebSocket's client hears that its server goes."""
    seen = asyncio.run(trials.endings())
    assert list(seen.values()) == [0, 1001, 200, "text/event-stream", 0]


def test_an_envelope_is_told_apart() -> None:
    """What the protocol needs is a few bytes on either stream; the rest around an update is the application's."""
    parts = trials.envelopes()
    assert parts[STREAM]["update"] == parts[SOCKET]["update"]
    assert (parts[STREAM]["of the protocol"], parts[SOCKET]["of the protocol"]) == (8, 4)


@pytest.mark.parametrize(
    ("flip", "sides"), [(4.0, (2.0, 8.0)), (math.inf, (0.2, 40)), (0.0, (0.2, 40)), (0.01, (0.2, 40))]
)
def test_both_sides_of_a_flip_are_counted(flip: float, sides: tuple[float, float]) -> None:
    """At half and at twice the flip, or at the ends of the range where there is none inside."""
    assert trials.both_sides(flip, 0.2, 40) == sides


def test_a_flip_is_judged_only_where_it_is_clear() -> None:
    """Counts close to the flip say nothing; clear ones must lie as it says."""
    assert trials.as_said(4.0, {2.0: 5.0, 8.0: 5.0}, {2.0: 1.0, 8.0: 9.0})
    assert not trials.as_said(4.0, {2.0: 5.0, 8.0: 9.5}, {2.0: 1.0, 8.0: 9.0})
    assert trials.as_said(4.0, {4.5: 9.5}, {4.5: 9.0})
    assert trials.as_said(math.inf, {0.2: 5.0, 40.0: 5.0}, {0.2: 1.0, 40.0: 2.0})


def test_verdicts() -> None:
    """A claim holds in every test, under a condition in some, or not at all."""
    assert trials.verdict({"a": True, "b": True}) == "holds"
    assert trials.verdict({"a": True, "b": False}, "it rains") == "holds if it rains"
    assert trials.verdict({"a": False}) == "does not hold"
    assert trials.verdict({"a": True, "b": None}, "it rains") == "holds if it rains"
    assert trials.verdict({"a": False, "b": None}) == "not told apart"
    found = trials.Verdicts()
    assert found.judge("x", {"a": True}, "1") == found.words["x"] == "holds"
    assert found._repr_markdown_().splitlines()[-1] == "| x | **holds** | 1 |"
    assert repr(found) == "x: holds"


def test_bills_by_law_and_by_count_agree() -> None:
    """A run of short polling, counted, costs within a tenth what the law says; a flip is where two bills are equal."""
    bills = Bills(REFERENCE, theory.Prices())
    followers = {SHORT: trials.follow(SHORT, interval=0.5)}
    sides = bills.all_counted(trials.pulled_and_pushed((SHORT,), {1.0: NEWS}, followers, 0.01))
    assert sides[SHORT][1.0] == pytest.approx(bills.month(SHORT, len(NEWS) / NEWS.seconds, interval=0.5), rel=0.1)
    x = bills.poll_or_push(1.0)
    assert bills.month(SHORT, x, interval=1.0) == pytest.approx(bills.month(STREAM, x))
    x = bills.long_poll_or_push(0.2)
    assert bills.month(LONG, x / 0.2, rtt=0.2) == pytest.approx(bills.month(STREAM, x / 0.2))
    share = bills.stream_or_socket(2.0)
    assert bills.month(STREAM, 2.0, upstream=2 * share) == pytest.approx(bills.month(SOCKET, 2.0, upstream=2 * share))


def test_news_around_a_flip_is_what_really_came() -> None:
    """On either side of a flip there are as many updates as the number says under which they stand."""
    news = trials.around(4.0, 0.2, 40, per=0.5, seconds=30)
    assert [x * 30 / 0.5 for x in news] == pytest.approx([len(each) for each in news.values()])
    below, above = news
    assert below < 4 < above


def test_trials_know_every_model() -> None:
    """A server of each model can be made, and each case's requirements are possible."""
    assert set(trials.MAKE) == set(MODELS)
    assert all(case.source.startswith("https://") for case in cases.CASES)


def segments(connection: socket.socket) -> tuple[int, int]:
    """The kernel's count of packets that a connection has sent and got (struct tcp_info, since Linux 4.2)."""
    sent, got = struct.unpack_from("II", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232), 136)
    return sent, got


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how many packets a connection had")
def test_a_pushed_update_is_a_packet_and_its_receipt() -> None:
    """By the kernel's count an update pushed alone comes in one packet, and no more than one goes back for it."""
    feed = Feed()
    with serve(trials.MAKE[STREAM](feed)) as server, socket.socket() as client:
        client.settimeout(20)
        client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        client.sendall(b"GET /events?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        heard = b""
        while b"\n\n" not in heard.partition(b"retry")[2]:
            heard += client.recv(65536)
        sent, got = segments(client)
        for number in range(5):
            feed.publish(f"{number}.txt")
            while heard.count(b'"seq":') < number + 1:
                heard += client.recv(65536)
        sent_after, got_after = segments(client)
    assert 5 <= got_after - got <= 7  # one that was on its way before, and a heartbeat at most
    assert sent_after - sent <= 7
