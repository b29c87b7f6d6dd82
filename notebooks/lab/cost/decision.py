"""The decision, computed: which model is the cheapest that is fresh enough, why, and at what point another one is.

    Requirements ─▶ who may, and keeps the budget? ─▶ laws x Units x Prices ─▶ the cheapest ─▶ Recommendation
                                                      └─ the same, with one number moved ─▶ Flip, Flip, ...

The laws are the course's (lab.theory), the units measured (lab.cost.processes), the prices yours. `REFERENCE` has the
units of one machine, so that a recommendation can be had without measuring first; your own are better.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, get_type_hints

import numpy as np

from lab import theory
from lab.bench.result import count, seconds
from lab.theory import LONG, MODELS, SHORT, SOCKET, STREAM, Prices, Resources, Units

MONTH = 365.25 / 12 * 86400  # seconds
BROWSER_HEADERS = 500  # bytes that a browser adds to a request: an assumption, small for a site with cookies
ALIKE = 0.1  # WebSocket has to be cheaper than SSE by more than this share: less is within the error of the units
REACH = 1000  # a flip further away than this factor is none

POLL = Resources(cpu=98e-6, up=94, down=131)
INSIDE = Resources(cpu=1.5e-6, down=179)  # an update in the answer to a poll
REFERENCE: dict[str, Units] = {
    SHORT: Units(POLL, INSIDE, Resources(memory=11.1 * 1024), POLL),
    LONG: Units(Resources(cpu=140e-6, up=74, down=167), INSIDE, Resources(memory=28.7 * 1024), POLL),
    SOCKET: Units(Resources(), Resources(cpu=10e-6, down=222),
                  Resources(cpu=1.6e-6, up=0.67, down=0.4, memory=34.7 * 1024), Resources(cpu=30e-6, up=43, down=55)),
    STREAM: Units(Resources(), Resources(cpu=12e-6, down=214), Resources(cpu=2.2e-6, down=1.2, memory=55 * 1024), POLL),
}  # fmt: skip
"""Measured on 2026-11-25 by `lab.cost.processes`: two shared cores, Python 3.11, uvloop."""


@dataclass(frozen=True)
class Requirements:
    """What the decision depends on. Raises ValueError with one sentence on what cannot be.

    clients        how many follow
    rate           updates per second, for each client
    budget         freshness: 95 % of the updates are to be no later than this (s)
    rtt            round trip between client and server (s)
    upstream       messages that a client sends, per update that it gets
    payload        bytes of a changed file that clients want along with the news
    wanted         the share of clients that want it
    streams_pass   False where something on the way breaks what is not a short request and its answer
    browsers       True adds what a browser's requests carry
    memory_limit   bytes that the connections may take on the server, in all
    hold           the longest a long poll may be held (s)
    """

    clients: int = 1000
    rate: float = 1.0
    budget: float = 1.0
    rtt: float = 0.05
    upstream: float = 0.0
    payload: float = 0.0
    wanted: float = 1.0
    streams_pass: bool = True
    browsers: bool = False
    memory_limit: float = math.inf
    hold: float = theory.HOLD

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for each in fields(self):
            value, name = getattr(self, each.name), each.name.replace("_", " ")
            if types[each.name] is bool:
                if not isinstance(value, bool):
                    raise ValueError(f"{name} is True or False, not {value!r}")
            elif isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise ValueError(f"{name} is a number, not {value!r}")
            elif each.name in ("upstream", "payload"):
                if not 0 <= value < math.inf:
                    raise ValueError(f"{name} is a number from 0 up, not {value!r}")
            elif not (0 < value < math.inf or (each.name == "memory_limit" and value == math.inf)):
                raise ValueError(f"{name} is a number above 0, not {value!r}")
        if self.clients != int(self.clients):
            raise ValueError(f"clients are counted in whole numbers, not {self.clients!r}")
        if self.wanted > 1:
            raise ValueError(f"wanted is a share of the clients, above 0 and at most 1, not {self.wanted!r}")
        if self.budget < self.rtt / 2:
            raise ValueError(
                f"nothing is fresher than one transit: with a round trip of {seconds(self.rtt)} "
                f"the budget is {seconds(self.rtt / 2)} or more, not {seconds(self.budget)}"
            )

    @property
    def interval(self) -> float:
        """The longest polling interval (s) that keeps the budget, and whose updates the history keeps."""
        return float(theory.interval_for(self.budget, self.rtt / 2, self.rate))


@dataclass(frozen=True)
class Flip:
    """With `quantity` at `value` instead of `now`, and everything else as it is, `model` is the choice."""

    quantity: str
    now: float
    value: float
    model: str

    @property
    def factor(self) -> float:
        """How many times more or less that is; infinite from 0."""
        return max(self.value / self.now, self.now / self.value) if self.now else math.inf

    def __str__(self) -> str:
        return f"{self.model} at {QUANTITIES[self.quantity].format(self.value)} (now {self.now:.3g})"


QUANTITIES = {
    "rate": "λ = {:.3g} updates per second",
    "budget": "a freshness budget of {:.3g} s",
    "upstream": "{:.3g} messages up per update",
    "rtt": "a round trip of {:.3g} s",
}


@dataclass(frozen=True)
class Decision:
    """What each model would cost (per client and second), and why some are out of the question."""

    requirements: Requirements
    units: Mapping[str, Units]
    prices: Prices

    @cached_property
    def excluded(self) -> dict[str, str]:
        """The models that will not do, each with a sentence that says why."""
        return {model: why for model in MODELS if (why := self._obstacle(model))}

    def _obstacle(self, model: str) -> str:
        r = self.requirements
        if model in (SOCKET, STREAM) and not r.streams_pass:
            return "streams do not get through"
        if not theory.meets(model, r.budget, r.rate, r.rtt, r.hold):
            return (
                f"it cannot bring 95 % of the updates within {seconds(r.budget)} over a round trip of {seconds(r.rtt)}"
            )
        if (needed := self.memory(model)) > r.memory_limit:
            return f"its connections take {_bytes(needed)} of memory, and {_bytes(r.memory_limit)} are allowed"
        return ""

    def memory(self, model: str) -> float:
        """Bytes that all connections take at one time."""
        return float(self.requirements.clients * self.work(model).held * self.units[model].held.memory)

    def work(self, model: str) -> theory.Work:
        """What one client makes the server do in a second."""
        r = self.requirements
        options: dict[str, Any] = {
            "interval": r.interval,
            "rtt": r.rtt,
            "hold": r.hold,
            "upstream": r.upstream * r.rate,
        }
        return theory.work(model, r.rate, **options)

    def resources(self, model: str) -> Resources:
        """What one client takes of the server in a second, files included."""
        r, work = self.requirements, self.work(model)
        plain = work.requests + (work.messages if model != SOCKET else 0.0)
        fetched = 0.0 if r.payload < self.threshold else r.rate * r.wanted
        content = r.payload * (fetched or 4 / 3 * r.rate)
        browser = Resources(up=BROWSER_HEADERS * (plain + fetched) if r.browsers else 0.0, down=content)
        return work.cost(self.units[model]) + self.units[SHORT].request * fetched + browser

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

    def moved(self, quantity: str, value: float) -> "Decision | None":
        """The same decision with one number changed; None if that cannot be."""
        change: dict[str, Any] = {quantity: value}
        try:
            return replace(self, requirements=replace(self.requirements, **change))
        except ValueError:
            return None

    def flips(self) -> list[Flip]:
        """The nearest flip in each quantity, upwards and downwards, the nearest first."""
        found = (self._flip(quantity, up) for quantity in QUANTITIES for up in (True, False))
        return sorted(filter(None, found), key=lambda flip: flip.factor)

    def _flip(self, quantity: str, up: bool) -> Flip | None:
        now = getattr(self.requirements, quantity)
        if not now and not up:
            return None
        same = now or 1e-6
        for step in np.geomspace(1, REACH if now else 1e8, 120)[1:]:
            other = (now or 1e-6) * (step if up else 1 / step)
            moved = self.moved(quantity, other)
            if moved is None or moved.model is None:
                return None
            if moved.model != self.model:
                return Flip(quantity, now, *self._between(quantity, same, other, moved.model))
            same = other
        return None

    def _between(self, quantity: str, same: float, other: float, model: str) -> tuple[float, str]:
        while abs(math.log(other / same)) > 1e-9:
            middle = math.sqrt(same * other)
            moved = self.moved(quantity, middle)
            if moved is not None and moved.model == self.model:
                same = middle
            else:
                other, model = middle, (moved.model if moved and moved.model else model)
        return other, model


@dataclass(frozen=True)
class Recommendation:
    """A model, the reasons in sentences with numbers, and the margin.

    `margin` is how many times as much the runner-up costs (infinite without one); `flips` say where you would change
    your mind, the nearest first; `costs` are per client and second, in the prices' currency.
    """

    model: str
    reasons: tuple[str, ...]
    margin: float
    runner_up: str | None
    flips: tuple[Flip, ...]
    costs: Mapping[str, float]

    def __repr__(self) -> str:
        return "\n".join([self.model, *(f"  - {reason}" for reason in self.reasons)])

    def _repr_markdown_(self) -> str:
        return "\n".join([f"**{self.model}**", "", *(f"- {reason}" for reason in self.reasons)])


def recommend(
    requirements: Requirements, units: Mapping[str, Units] | None = None, prices: Prices | None = None
) -> Recommendation:
    """The cheapest model that will do. Raises ValueError, with every model's obstacle, when none will.

    Without `units` and `prices` it goes by `REFERENCE` and by the assumed prices of `Prices()`.
    """
    decision = Decision(requirements, units or REFERENCE, prices or Prices())
    model = decision.model
    if model is None:
        raise ValueError("no model will do: " + "; ".join(f"{m}: {why}" for m, why in decision.excluded.items()))
    others = sorted((cost, other) for other, cost in decision.costs.items() if other != model)
    runner_up = others[0][1] if others else None
    margin = others[0][0] / decision.costs[model] if others and decision.costs[model] else math.inf
    flips = tuple(decision.flips())
    reasons = tuple(_reasons(decision, model, runner_up, margin, flips))
    return Recommendation(model, reasons, margin, runner_up, flips, decision.costs)


def _reasons(
    decision: Decision, model: str, runner_up: str | None, margin: float, flips: tuple[Flip, ...]
) -> Iterator[str]:
    r, work, used = decision.requirements, decision.work(model), decision.resources(model)
    bill = decision.costs[model] * r.clients * MONTH
    against = f"; the runner-up, {runner_up}, costs {margin:.2f} times as much" if runner_up else ""
    yield f"It costs {_figure(bill)} a month for {count(r.clients, 'client')}, at the prices given{against}."
    if runner_up == SOCKET and margin < 1:
        yield f"The WebSocket is cheaper by less than {ALIKE:.0%}, which is within the error: SSE is plain HTTP."
    if bill:
        parts = {
            "bytes": replace(used, cpu=0.0, memory=0.0, connections=0.0),
            "CPU": Resources(cpu=used.cpu),
            "memory and connections": Resources(memory=used.memory, connections=used.connections),
        }
        shares = {name: part.price(decision.prices) / decision.costs[model] for name, part in parts.items()}
        yield "Of that, " + ", ".join(f"{share:.0%} is {name}" for name, share in shares.items()) + "."
    if model == SHORT:
        yield f"A poll every {seconds(r.interval)} brings 95 % of the updates within the {seconds(r.budget)} allowed."
    else:
        late = r.rtt / 2
        if model == LONG:
            late = theory.long_polling_delay_quantile(0.95, r.rate, r.rtt, r.hold, late)
        yield f"95 % of the updates come within {seconds(late)}, and {seconds(r.budget)} are allowed."
    yield (
        f"The server answers {_figure(r.clients * work.requests)} requests a second and makes "
        f"{_figure(r.clients * r.rate)} deliveries; "
        f"{r.clients * work.held:,.0f} connections take {_bytes(decision.memory(model))}; "
        f"{r.clients * used.cpu:.2g} of a core is busy."
    )
    for other, why in decision.excluded.items():
        yield f"{other[0].upper()}{other[1:]} is out: {why}."
    if r.browsers and model != SHORT:
        yield "In a browser, on HTTP/1.1, each open tab holds one of six connections to this origin."
    if r.payload:
        way = (
            "send the file along" if r.payload < decision.threshold else "announce it, and let those who want it fetch"
        )
        yield f"A file of {_bytes(r.payload)}: {way}; the bytes down are equal at {_bytes(decision.threshold)}."
    if flips:
        yield "You would change your mind for " + "; for ".join(map(str, flips[:3])) + "."
    else:
        yield f"No single number, moved by a factor of {REACH:,.0f} either way, changes that."


def _figure(number: float) -> str:
    """ "0.25", "1,000"."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _bytes(number: float) -> str:
    """ "12 bytes", "1.5 KiB", "33 MiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{_figure(number)} {unit}"
        number /= 1024
    return f"{_figure(number)} GiB"
