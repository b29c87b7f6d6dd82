"""What every model would cost, and which of them will do at all: the part of a decision that can be computed.

Requirements ─▶ laws ─▶ Work ─▶ Resources ─▶ price, for each model that will do ─▶ Decision.model, the cheapest
                                                                                └▶ advice.py, which weighs it

The laws are the course's (lab.theory), the units measured (lab.cost.measuring), the prices yours. `REFERENCE` has the
units of one machine, so that a recommendation can be had without measuring first, and `REFERENCE_AT_LIMIT` those of
the fast path; your own are better.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lab import theory
from lab.bench.result import seconds
from lab.cost.requirements import Requirements
from lab.theory import LONG, MODELS, SHORT, SOCKET, STREAM, Prices, Resources, Units
from lab.theory.numbers import fits, fitting
from servers.feed import BATCH

BROWSER_HEADERS = 500  # bytes that a browser adds to a request: an assumption, small for a site with cookies
HPACK = 0.12  # of them left by HTTP/2 on a warm connection: RFC 7541's tables, run over a browser's heads
CONNECTIONS, STREAMS = 6, 100  # that a browser opens to one origin by HTTP/1.1; that servers allow by HTTP/2
RETURN = 0.1  # s; how long a client waits that our servers tell to come back (servers/sse.py, RENEW)
ALIKE = 0.1  # of the price: SSE and WebSocket that differ by less are not told apart by cost

POLL = Resources(cpu=98e-6, up=94, down=131)
INSIDE = Resources(cpu=1.5e-6, down=179)  # an update in the answer to a poll
REFERENCE: dict[str, Units] = {
    SHORT: Units(POLL, INSIDE, Resources(memory=11.1 * 1024), POLL),
    LONG: Units(Resources(cpu=140e-6, up=74, down=167), INSIDE, Resources(memory=28.7 * 1024), POLL),
    SOCKET: Units(Resources(), Resources(cpu=10e-6, down=222),
                  Resources(cpu=1.6e-6, up=0.67, down=0.4, memory=34.7 * 1024), Resources(cpu=30e-6, up=43, down=55)),
    STREAM: Units(Resources(), Resources(cpu=12e-6, down=214), Resources(cpu=2.2e-6, down=1.2, memory=55 * 1024), POLL),
}  # fmt: skip
"""As tutorials write it. Measured on 2026-11-25: two shared cores, Python 3.11, uvloop; bytes of TCP payload."""

FAST_POLL = replace(POLL, cpu=13e-6)
FAST_INSIDE = replace(INSIDE, cpu=0.4e-6)
REFERENCE_AT_LIMIT: dict[str, Units] = {
    SHORT: Units(FAST_POLL, FAST_INSIDE, Resources(memory=10.9 * 1024), POLL),
    LONG: Units(Resources(cpu=8.5e-6, up=74, down=167), FAST_INSIDE, Resources(memory=11 * 1024), POLL),
    SOCKET: Units(Resources(), Resources(cpu=4.1e-6, down=222),
                  Resources(cpu=1.2e-6, up=0.67, down=0.4, memory=21.7 * 1024), Resources(cpu=23e-6, up=43, down=55)),
    STREAM: Units(Resources(), Resources(cpu=4e-6, down=214),
                  Resources(cpu=0.2e-6, down=1.2, memory=23.7 * 1024), POLL),
}  # fmt: skip
"""At the limit: the bytes are the same. CPU: REFERENCE's by the median ratio of the two columns in interleaved runs."""


@dataclass(frozen=True)
class Decision:
    """What each model would cost (per client and second), and why some are out of the question.

    With `joined` a push waits for what else comes while the budget allows, and sends it as one delivery.
    """

    requirements: Requirements
    units: Mapping[str, Units]
    prices: Prices
    joined: bool = False

    @cached_property
    def excluded(self) -> dict[str, str]:
        """The models that will not do, each with a sentence that says why."""
        return {model: why for model in MODELS if (why := self._impossible(model) or self._late(model))}

    def _impossible(self, model: str) -> str:
        r = self.requirements
        if model in (SOCKET, STREAM) and not r.streams_pass:
            return "streams do not get through"
        if model == SOCKET and not r.sockets_pass:
            return "a WebSocket does not get through"
        if r.browsers and model in (LONG, STREAM):
            most = STREAMS if r.http2 else CONNECTIONS
            if r.tabs >= most:
                version = "about 100 streams of an HTTP/2" if r.http2 else "six HTTP/1.1 connections to an"
                return f"{r.tabs} tabs would hold all of the {version} origin, and leave none to load anything"
        if (needed := self.memory(model)) > r.memory_limit:
            return f"its connections take {in_bytes(needed)} of memory, and {in_bytes(r.memory_limit)} are allowed"
        return ""

    def late(self, model: str) -> float:
        """How late (s) 95 % of a push's or long poll's updates are at most.

        A stream that the platform ended is back after two round trips and a pause of RETURN, and brings what came
        meanwhile.
        """
        r = self.requirements
        if model == LONG:
            return float(
                theory.long_polling_delay_quantile(0.95, self.rate, r.rtt, self.hold, r.transit, theory.JITTER)
            )
        away = 2 * r.rtt + RETURN
        share = away / (r.cut_after + away)
        return r.transit + away * max(0.0, 1 - 0.05 / share) if share else r.transit

    def _late(self, model: str) -> str:
        r = self.requirements
        if model == SHORT:
            fresh = r.interval >= max(r.rtt, 1e-9)
        elif model == LONG and not self._fits_an_answer:
            fresh = False
        else:
            fresh = self.late(model) <= r.budget
        late = f"it cannot bring 95 % of the updates within {seconds(r.budget)} over a round trip of {seconds(r.rtt)}"
        return "" if fresh else late

    @property
    def _fits_an_answer(self) -> bool:
        """Whether a long poll's answer can carry what comes in a round trip."""
        return bool(fits(self.rate * self.requirements.rtt, BATCH))

    @property
    def rate(self) -> float:
        """Updates per second that a pull has to bring: those that are overtaken in an answer never fill it."""
        r = self.requirements
        return min(r.rate, fitting(BATCH) / max(r.interval, r.rtt)) if r.latest else r.rate

    @property
    def hold(self) -> float:
        """How long a long poll is held (s): less than the platform allows an answer to last."""
        return min(self.requirements.hold, 0.9 * self.requirements.cut_after)

    @property
    def window(self) -> float:
        """For how long a push joins what comes (s): what the budget leaves, and the history still has."""
        r = self.requirements
        if not self.joined:
            return 0.0
        left = r.budget - r.transit
        return left if r.latest else min(left, r.bridged / r.rate)

    def memory(self, model: str) -> float:
        """Bytes that all connections take at one time."""
        r = self.requirements
        kept = min(1.0, theory.KEEP_ALIVE / r.interval) if model == SHORT and r.interval > 0 else 1.0
        return r.clients * kept * float(self.units[model].held.memory)

    def work(self, model: str) -> theory.Work:
        """What one client makes the server do in a second."""
        r = self.requirements
        options: dict[str, Any] = {"rtt": r.rtt, "hold": self.hold, "upstream": r.talk}
        if model == SHORT:
            options["interval"] = r.interval
        return theory.work(model, self.rate, **options)

    def pushes(self, work: theory.Work) -> tuple[float, float]:
        """Deliveries of a push in a second, and the updates that travel inside one without being its first.

        A window opens with the first update after the last one closed: λ/(1 + λJ) of them in a second.
        """
        r = self.requirements
        opened = r.rate / (1 + r.rate * self.window)
        return opened, 0.0 if r.latest and self.joined else r.rate - opened

    def sent(self, model: str) -> float:
        """Deliveries to one client in a second: joined ones are one, and an answer has the newest state once."""
        r, work = self.requirements, self.work(model)
        if model in (SOCKET, STREAM):
            return self.pushes(work)[0]
        return min(r.rate, float(work.requests)) if r.latest else r.rate

    def fetched(self, model: str) -> float:
        """Files that one client asks for in a second: none where they travel along."""
        r = self.requirements
        return 0.0 if r.payload < self.threshold else self.sent(model) * r.wanted

    def returns(self, model: str) -> float:
        """How often in a second one client's stream is ended by the platform, and comes back by its cursor."""
        return 1 / self.requirements.cut_after if model in (SOCKET, STREAM) else 0.0

    def requests(self, model: str) -> float:
        """All that one client asks of the server in a second: for news and for files, to say something, to return."""
        work = self.work(model)
        said = work.messages if model != SOCKET else 0.0
        return float(work.requests + said) + self.fetched(model) + self.returns(model)

    def resources(self, model: str) -> Resources:
        """What one client takes of the server in a second, files included."""
        r, work, sent = self.requirements, self.work(model), self.sent(model)
        more = Resources()
        if model in (SOCKET, STREAM):
            more = self.units[SHORT].delivery * self.pushes(work)[1] + self.units[SHORT].request * self.returns(model)
        used = theory.Work(work.requests, sent, work.held, work.messages).cost(self.units[model])
        plain = work.requests + (work.messages if model != SOCKET else 0.0)
        fetched = self.fetched(model)
        content = r.payload * (fetched or 4 / 3 * sent)
        heads = BROWSER_HEADERS * (HPACK if r.http2 else 1.0)
        browser = Resources(up=heads * (plain + fetched) if r.browsers else 0.0, down=content)
        return used + more + self.units[SHORT].request * fetched + browser

    @property
    def threshold(self) -> float:
        """The size (bytes) from which on a file is better announced than sent along, by the bytes down."""
        return theory.notify_or_inline(self.units[SHORT].request.down, self.requirements.wanted)

    @cached_property
    def costs(self) -> dict[str, float]:
        """The price of a client's second, for each model that will do."""
        return {m: float(self.resources(m).price(self.prices)) for m in MODELS if m not in self.excluded}

    @cached_property
    def model(self) -> str | None:
        """The cheapest; SSE instead of a WebSocket that is not clearly cheaper; None when nobody will do."""
        if not self.costs:
            return None
        cheapest = min(self.costs, key=lambda model: self.costs[model])
        if cheapest == SOCKET and self.costs.get(STREAM, math.inf) <= (1 + ALIKE) * self.costs[SOCKET]:
            return STREAM
        return cheapest


def figure(number: float) -> str:
    """ "0.25", "1,000"."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def in_bytes(number: float) -> str:
    """ "1 byte", "12 bytes", "1.5 KiB", "33 MiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return "1 byte" if (number, unit) == (1, "bytes") else f"{figure(number)} {unit}"
        number /= 1024
    return f"{figure(number)} GiB"
