"""The advice: what an experienced engineer would say, in the order in which one thinks, a sentence for each step.

Requirements ─▶ is it one of the four at all? ─▶ what is possible ─▶ what is fresh enough ─▶ does cost decide?
                    │ no: whose it is                                     │ no: the simplest to run │ yes: the cheapest
                    ▼                                                     ▼                         ▼
                Recommendation: model, reasons, margin, and where the answer flips
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lab.bench.result import count, seconds
from lab.cost.bills import MONTH
from lab.cost.decision import REFERENCE, Decision, figure, in_bytes
from lab.cost.flips import REACH, Flip, flips
from lab.cost.network import on_the_network
from lab.cost.requirements import Requirements
from lab.theory import LONG, SHORT, SOCKET, STREAM, Prices, Resources, Units

SIMPLEST = (SHORT, STREAM, LONG, SOCKET)  # to run, the simplest first
IN_TALK = (SHORT, SOCKET, STREAM, LONG)  # where the clients say much: one order of messages instead of two
TALK = (0.5, 1.0)  # messages up per update, or in a second, from which on clients talk
SELDOM = 1 / 60  # messages up in a second below which nobody talks, however rare the updates
PLATFORM, MQTT, DATAGRAMS, WEBHOOK, RSYNC = "platform push", "MQTT", "UDP or WebRTC", "webhook", "rsync"
RARE = 1.0  # updates per second up to which a call for each is no burden
WAKING = 1 / 180  # updates per second up to which a platform wakes an app: FCM's rate for messages that collapse
ASKING = 3600.0  # s; a small device that may hear so late wakes up, asks, and needs no broker
NIGHT = 6 * 3600.0  # s; who can wait that long needs no news, only the difference
FULL_CORE = 0.7  # of a core busy: no more on average, or bursts wait


@dataclass(frozen=True)
class Threshold:
    """When a cost matters: a difference of `bill` or more a month *and* of `margin` times or more.

    Below either the simplest to run wins. `soonest` (s): a poll that would have to come oftener is a stream in
    disguise, and is left to a stream where there is one.
    """

    bill: float = 10.0
    margin: float = 2.0
    soonest: float = 2.0

    def __post_init__(self) -> None:
        if not (self.bill >= 0 and self.margin >= 1 and self.soonest >= 0):
            raise ValueError("a bill is a number from 0 up, a margin one from 1 up, the soonest poll one from 0 up")


@dataclass(frozen=True)
class Recommendation:
    """A model, the reasons in sentences with numbers, and the margin.

    `margin` is what the dearest of those left costs against the choice where the simplest wins, else the runner-up
    (infinite without one); `flips` say where you would change your mind, the nearest first; `costs` are per client and
    second, in the prices' currency; without one of the four they are empty.
    """

    model: str
    reasons: tuple[str, ...]
    margin: float = math.inf
    runner_up: str | None = None
    flips: tuple[Flip, ...] = ()
    costs: Mapping[str, float] | None = None

    def __repr__(self) -> str:
        return "\n".join([self.model, *(f"  - {reason}" for reason in self.reasons)])

    def _repr_markdown_(self) -> str:
        return "\n".join([f"**{self.model}**", "", *(f"- {reason}" for reason in self.reasons)])


def recommend(
    requirements: Requirements,
    units: Mapping[str, Units] | None = None,
    prices: Prices | None = None,
    threshold: Threshold | None = None,
) -> Recommendation:
    """What to build, and why. Raises ValueError, with every model's obstacle, when none of the four will do.

    Without `units`, `prices` and `threshold` it goes by `REFERENCE` on a network, and by the assumptions of `Prices()`
    and `Threshold()`.
    """
    advisor = _advisor(units, prices, threshold)
    if other := elsewhere(requirements):
        model, why = other
        return Recommendation(model, (why, *advisor.beside(requirements, model)))
    return advisor.advise(requirements)


def choice(
    requirements: Requirements,
    units: Mapping[str, Units] | None = None,
    prices: Prices | None = None,
    threshold: Threshold | None = None,
) -> str | None:
    """The model that `recommend` names, and nothing besides; None where it would raise."""
    return _advisor(units, prices, threshold).choice(requirements)


def _advisor(units: Mapping[str, Units] | None, prices: Prices | None, threshold: Threshold | None) -> "_Advisor":
    return _Advisor(on_the_network(REFERENCE) if units is None else units, prices or Prices(), threshold or Threshold())


def elsewhere(r: Requirements) -> tuple[str, str] | None:
    """Who will do better than any of the four, and why; None where they are the right ones."""
    if r.followers == "phones" and r.rate <= WAKING:
        return PLATFORM, (
            "An app that sleeps has no connection of its own: the system ends it to save the battery. The push service "
            "of the platform (APNs, FCM, Web Push) keeps one for all apps, and wakes this one."
        )
    if r.lossy and r.budget <= 0.2:
        return DATAGRAMS, (
            "All four are TCP, which holds back everything behind a lost packet for a round trip or more. What is "
            "worth nothing when late goes in datagrams: UDP, or a browser's unreliable data channel (WebRTC, RFC 8831)."
        )
    if r.followers == "devices" and r.budget < ASKING:
        return MQTT, (
            "Small devices on radio links sleep and come back: a broker keeps what came meanwhile, tells topics apart, "
            "and a packet's fixed head is two bytes (MQTT 5.0, section 2.1.1)."
        )
    if r.payload and r.budget >= NIGHT and r.followers in ("programs", "servers"):
        return RSYNC, (
            f"Files that may be {lasting(r.budget)} old need no news: a job at night compares both sides and sends the "
            "differences, once, however often a file changed meanwhile."
        )
    if r.followers == "servers" and r.rate <= RARE:
        return WEBHOOK, (
            f"A server with an address can be called: one POST for each event, {figure(3600 * r.rate)} an hour, and no "
            "connection in between. Keep the log too, so that who was down asks for what it missed."
        )
    return None


@dataclass(frozen=True)
class _Advisor:
    units: Mapping[str, Units]
    prices: Prices
    threshold: Threshold

    def decide(self, r: Requirements) -> Decision:
        """The costs, with news joined or conflated where several come while the budget lasts."""
        dense = r.rate * (r.budget - r.transit) > 1
        return Decision(r, self.units, self.prices, joined=dense)

    def choice(self, r: Requirements) -> str | None:
        """The model alone, for the flips."""
        if other := elsewhere(r):
            return other[0]
        decision = self.decide(r)
        return self.choose(decision)[0] if decision.costs else None

    def choose(self, decision: Decision) -> tuple[str, str]:
        """The simplest whose cost does not matter beside the cheapest's, and how that came."""
        r = decision.requirements
        left = dict(decision.costs)
        often = self.often(decision)
        if often:
            del left[SHORT]
        cheapest = min(left, key=lambda model: left[model])
        order = IN_TALK if talks(r) else SIMPLEST
        for model in order:
            if model in left and not self.matters(left[model], left[cheapest], r.clients):
                return model, often
        raise AssertionError("the cheapest never costs more than itself")

    def often(self, decision: Decision) -> str:
        """Why polls would come too often, where something else is left."""
        interval = decision.requirements.interval
        if SHORT not in decision.costs or len(decision.costs) == 1 or interval >= self.threshold.soonest:
            return ""
        tab = interval < 1 and decision.requirements.browsers
        hidden = ", and a hidden tab's timers run once a second" if tab else ""
        disguised = f"that is a stream in disguise{hidden}"
        return f"Polls would have to come every {seconds(interval)}: {disguised}. They are left out."

    def matters(self, cost: float, least: float, clients: int) -> bool:
        """Whether so much more a client and second is more than both thresholds."""
        more = (cost - least) * clients * MONTH
        return more >= self.threshold.bill and cost >= self.threshold.margin * least and more > 0

    def advise(self, r: Requirements) -> Recommendation:
        """One of the four."""
        decision = self.decide(r)
        if not decision.costs:
            raise ValueError("no model will do: " + "; ".join(f"{m}: {why}" for m, why in decision.excluded.items()))
        model, often = self.choose(decision)
        others = sorted((cost, other) for other, cost in decision.costs.items() if other != model)
        runner_up = others[0][1] if others else None
        own = decision.costs[model]
        margin = others[0][0] / own if others and own else math.inf
        turns = tuple(flips(r, functools.cache(self.choice)))
        reasons = (
            *_possible(decision, model),
            *_fresh(decision, model),
            *([often] if often else []),
            *self.weighed(decision, model, runner_up, margin),
            *_built(decision, model),
            _turns(turns),
        )
        return Recommendation(model, reasons, margin, runner_up, turns, decision.costs)

    def weighed(self, decision: Decision, model: str, runner_up: str | None, margin: float) -> Iterator[str]:
        """Does cost decide?"""
        r, own = decision.requirements, decision.costs[model]
        bill = own * r.clients * MONTH
        against = f"; {runner_up} {margin:.2f} times as much" if runner_up and own else ""
        yield f"It costs {figure(bill)} a month for {count(r.clients, 'client')}, at the prices given{against}."
        left = [m for m in decision.costs if m != SHORT or not self.often(decision)]
        dear = [m for m in left if self.matters(decision.costs[m], min(decision.costs[n] for n in left), r.clients)]
        if len(left) == 1:
            yield "Cost does not decide: nobody else is left."
        elif not dear:
            yield (
                f"Cost does not decide: nobody left costs {self.threshold.margin:g} times the cheapest and "
                f"{self.threshold.bill:g} a month more. The simplest to run wins."
            )
        else:
            yield f"Cost decides against {' and '.join(dear)}: it is more than the thresholds allow."
        if talks(r) and model == SOCKET:
            yield (
                f"Clients say {figure(r.upstream)} for each update they get: that is a conversation, and one "
                "connection keeps one order of both sides' messages."
            )
        if own:
            yield _shares(decision.resources(model), self.prices, own)

    def beside(self, r: Requirements, model: str) -> Iterator[str]:
        """What of the four goes with an answer that is none of them."""
        if model in (PLATFORM, WEBHOOK):
            awake = replace(r, followers="programs")
            decision = self.decide(awake)
            if decision.costs:
                what = "While it is awake" if model == PLATFORM else "Where a server cannot be reached"
                yield f"{what}, it follows the log by {self.choose(decision)[0]}, from its cursor."


def lasting(value: float) -> str:
    """A duration as one would say it, however long: "159 s", "13.2 hours", "361 days", "30 years"."""
    for unit, name in ((365 * 86400.0, "years"), (86400.0, "days"), (3600.0, "hours")):
        if value >= 2 * unit:
            return f"{figure(value / unit)} {name}"
    return seconds(value)


def talks(r: Requirements) -> bool:
    """Whether clients say so much that it is a conversation."""
    return r.talk >= SELDOM and (r.upstream >= TALK[0] or r.talk >= TALK[1])


def _possible(decision: Decision, model: str) -> Iterator[str]:
    """What gets through, and what a client can send."""
    r = decision.requirements
    if r.followers == "phones":
        yield (
            f"No platform wakes an app {figure(3600 * r.rate)} times an hour: it follows while it is awake, and the "
            "push service calls it for the few updates that cannot wait."
        )
    for other, why in decision.excluded.items():
        yield f"{other[0].upper()}{other[1:]} is out: {why}."
    if r.browsers and not r.http2 and model != SHORT and decision.excluded.keys().isdisjoint((STREAM, LONG)):
        yield (
            "In a browser, on HTTP/1.1, a tab that holds a stream or a long poll holds one of six connections to the "
            "origin; a WebSocket is not counted among them."
        )
    if r.browsers and r.headers and model in (SOCKET, STREAM):
        who, instead = ("EventSource", "read the stream by fetch") if model == STREAM else ("WebSocket", "say it first")
        yield f"A browser's {who} sends no header of your own: let a cookie carry the token, or {instead}."
    if math.isfinite(r.cut_after):
        yield (
            f"The platform ends every answer after {lasting(r.cut_after)}: let the server end them a little sooner, "
            f"and streams come back at once, by their cursor, {figure(r.clients / r.cut_after)} times a second in all; "
            f"a long poll is held no longer than {seconds(decision.hold)}."
        )


def _fresh(decision: Decision, model: str) -> Iterator[str]:
    """How late the news is."""
    r = decision.requirements
    if model == SHORT:
        yield f"A poll every {lasting(r.interval)} brings 95 % of the updates within the {lasting(r.budget)} allowed."
        return
    come = "could come" if decision.joined and model != LONG else "come"  # what is joined waits
    yield f"95 % of the updates {come} within {seconds(decision.late(model))}, and {lasting(r.budget)} are allowed."


def _built(decision: Decision, model: str) -> Iterator[str]:
    """What to build it with: cache, window, history, processes, files."""
    r, used = decision.requirements, decision.resources(model)
    if model == SHORT:
        shared = "a cache or CDN in front, which asks the server once for all"
        private = "Cache-Control: private, for no two clients get the same"
        yield f"Poll with an ETag, so that an answer without news has no body, and {shared if r.shared else private}."
    if decision.joined and model in (SOCKET, STREAM):
        how = "send the newest state only" if r.latest else "join what comes into one message"
        yield f"News is dense: {how}, within {seconds(decision.window)}, {figure(r.rate * decision.window)} at a time."
    if r.latest:
        yield "Only the newest state counts: who comes back is told it, whatever was missed."
    elif r.rate:
        bridged = f"A history of {count(r.history, 'update')} bridges an absence of {lasting(r.bridged / r.rate)}"
        polls = f", and a poll carries {figure(r.rate * r.interval)} of them" if model == SHORT else ""
        yield f"{bridged}{polls}; who was away longer lists again."
    cores = r.clients * float(used.cpu)
    server = "Without that cache the server" if model == SHORT and r.shared else "The server"
    held = count(math.ceil(r.clients * decision.work(model).held), "connection")
    yield (
        f"{server} answers {figure(r.clients * decision.requests(model))} requests a second, {held} in all need "
        f"{in_bytes(decision.memory(model))}, and the work is that of "
        f"{figure(cores) if cores >= 100 else format(cores, '.2g')} cores."
    )
    if used.cpu > FULL_CORE:
        yield "One client alone is more than a process can do: send less, or by a faster server."
    elif cores > FULL_CORE:
        need = math.ceil(cores / FULL_CORE)
        yield f"One process uses one core: this takes {need:,} processes on one log, or a faster server."
    if r.payload:
        way = (
            "send the file along" if r.payload < decision.threshold else "announce it, and let those who want it fetch"
        )
        yield f"A file of {in_bytes(r.payload)}: {way}; the bytes down are equal at {in_bytes(decision.threshold)}."


def _turns(turns: tuple[Flip, ...]) -> str:
    """Where the answer changes."""
    if turns:
        return "You would change your mind for " + "; for ".join(map(str, turns[:3])) + "."
    return f"No single number, moved by a factor of {REACH:,.0f} either way, changes that."


def _shares(used: Resources, prices: Prices, own: float) -> str:
    """Which resource the bill is for."""
    parts = {
        "bytes": replace(used, cpu=0.0, memory=0.0, connections=0.0),
        "CPU": Resources(cpu=used.cpu),
        "memory and connections": Resources(memory=used.memory, connections=used.connections),
    }
    shares = {name: part.price(prices) / own for name, part in parts.items()}
    return "Of the price, " + ", ".join(f"{share:.0%} is {name}" for name, share in shares.items()) + "."
