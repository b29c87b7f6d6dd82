"""How large a fleet has to be: cores, memory, descriptors, bandwidth and processes, and what binds first.

your unit costs (lab.cost.measuring, or REFERENCE) ─┐
clients, rate, deadline, model ─▶ laws (lab.theory.fleet) ─▶ clients of one process ─▶ Capacity ─▶ elasticities

A process is one event loop on one core. Every process hears every update, from the shared log. The plan is for the
servers alone: a proxy in front has its own descriptors, ports and CPU time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from lab.bench.result import seconds
from lab.cost.decision import REFERENCE, figure, in_bytes
from lab.theory import KEEP_ALIVE, LONG, MODELS, SHORT, SOCKET, STREAM, Units, fleet, interval_for, meets, work
from servers.feed import HEARTBEAT
from servers.limits import check_finite, check_positive, check_whole

PUBLISH = 600e-6  # CPU seconds of one update in one process, before the first client: measured 2026-11-25
BASE = 75 * 2**20  # bytes of a process without clients
SPARE = 64  # descriptors that a process needs besides its clients'


@dataclass(frozen=True)
class Limits:
    """What one process may hold and one host has.

    descriptors    a process may have open: `ulimit -n`; services set it, 1 024 is the usual default
    load           the share of its core that a process may be busy on average
    cores, memory (bytes), bandwidth (bytes/s, down)    of a host
    """

    descriptors: int = 65_536
    load: float = 0.7
    cores: int = 16
    memory: float = 64 * 2**30
    bandwidth: float = 10e9 / 8

    def __post_init__(self) -> None:
        check_whole(descriptors=self.descriptors, least=SPARE + 1)
        check_whole(cores=self.cores, least=1)
        check_positive(load=self.load, memory=self.memory, bandwidth=self.bandwidth)
        if self.load >= 1:
            raise ValueError(f"a process that is always busy is late without end: load is below 1, not {self.load!r}")


@dataclass(frozen=True)
class Capacity:
    """The plan for `clients` that each are to have 95 % of `rate` updates a second within `deadline` (s).

    Made by `capacity`, which checks the numbers. `holds` says how many clients one process can hold, by what limits
    them; `binds` is the tightest.
    """

    clients: int
    rate: float
    deadline: float
    model: str
    units: Units
    limits: Limits
    rtt: float
    heartbeat: float
    publish: float

    @property
    def transit(self) -> float:
        """One way through the network (s)."""
        return self.rtt / 2

    @cached_property
    def burst(self) -> float:
        """CPU seconds of one update for one client: all clients' fall together, so the last one waits for them."""
        if self.model == SHORT:
            return 0.0
        return float(self.units.delivery.cpu + (self.units.request.cpu if self.model == LONG else 0.0))

    @cached_property
    def kept(self) -> float:
        """CPU seconds a second that a client makes besides: polls, heartbeats, held requests that end empty."""
        if self.model in (SOCKET, STREAM):
            return float(self.units.held.cpu) * HEARTBEAT / self.heartbeat
        done = work(self.model, self.rate, interval=self.interval, rtt=self.rtt)
        if self.model == SHORT:
            return float(done.requests * self.units.request.cpu + self.rate * self.units.delivery.cpu)
        return float(max(0.0, done.requests - self.rate) * self.units.request.cpu)

    @cached_property
    def interval(self) -> float:
        """How often a polling client asks (s)."""
        return float(interval_for(self.deadline, self.transit, self.rate))

    @cached_property
    def holds(self) -> dict[str, float]:
        """How many clients one process holds, by what limits it."""
        left = self.deadline - (3 if self.model == LONG else 1) * self.transit
        if self.model == SHORT:
            left = math.inf  # the interval keeps the deadline, and nobody waits for anybody
        found = fleet.most_clients(
            min(left, 1e9), self.rate, self.burst, publish=self.publish, kept=self.kept, most_load=self.limits.load
        )
        return found | {"descriptors": self.limits.descriptors - SPARE}

    @cached_property
    def per_process(self) -> int:
        """Clients of one process."""
        return min(self.clients, math.floor(min(self.holds.values())))

    @property
    def binds(self) -> str:
        """What limits a process first."""
        return min(self.holds, key=lambda what: self.holds[what])

    @property
    def processes(self) -> int:
        """How many processes it takes, each on a core of its own."""
        return math.ceil(self.clients / self.per_process)

    @property
    def cpu(self) -> float:
        """CPU seconds per second, of all processes: what is used, not what has to be there."""
        return self.clients * (self.rate * self.burst + self.kept) + self.processes * self.rate * self.publish

    @property
    def load(self) -> float:
        """The share of their time that the processes are busy."""
        return self.cpu / self.processes

    @property
    def connections(self) -> float:
        """Open at one time: a poll that comes seldom lets its connection go in between."""
        return self.clients * (min(1.0, KEEP_ALIVE / self.interval) if self.model == SHORT else 1.0)

    @property
    def memory(self) -> float:
        """Bytes of all processes; the kernel's socket buffers come on top."""
        return float(self.connections * self.units.held.memory + self.processes * BASE)

    @property
    def descriptors(self) -> float:
        """One for each connection, and what each process has open besides."""
        return self.connections + self.processes * SPARE

    @property
    def down(self) -> float:
        """Bytes a second that the clients are sent."""
        done = work(self.model, self.rate, **({} if self.model != SHORT else {"interval": self.interval}), rtt=self.rtt)
        sent = done.requests * self.units.request.down + self.rate * self.units.delivery.down
        return float(self.clients * (sent + self.units.held.down * HEARTBEAT / self.heartbeat))

    @property
    def hosts(self) -> dict[str, float]:
        """How many hosts each resource asks for; the largest counts."""
        own = self.limits
        return {
            "cores": self.processes / own.cores,
            "memory": self.memory / own.memory,
            "bandwidth": self.down / own.bandwidth,
        }

    @property
    def quiet(self) -> float:
        """The share of the CPU time that is not for updates: heartbeats, or polls."""
        return self.clients * self.kept / self.cpu

    def __repr__(self) -> str:
        what = max(self.hosts, key=lambda name: self.hosts[name])
        return (
            f"{self.model}, {self.clients:,} clients, λ = {figure(self.rate)}/s, 95 % within "
            f"{seconds(self.deadline)}: {self.processes:,} process{'es' if self.processes > 1 else ''} of "
            f"{self.per_process:,} clients ({self.binds} binds), {figure(self.cpu)} cores busy, "
            f"{in_bytes(self.memory)}, {self.descriptors:,.0f} descriptors, {figure(8e-6 * self.down)} Mbit/s; "
            f"{math.ceil(self.hosts[what]):,} host{'s' if self.hosts[what] > 1 else ''} ({what})"
        )


def capacity(
    clients: int,
    rate: float,
    deadline: float,
    model: str = STREAM,
    *,
    units: Mapping[str, Units] = REFERENCE,
    limits: Limits | None = None,
    rtt: float = 0.05,
    heartbeat: float = HEARTBEAT,
    publish: float = PUBLISH,
) -> Capacity:
    """The fleet for so many clients, at `rate` updates a second, 95 % of them with the last client within `deadline` s.

    `units` are your own measurements, `publish` what an update costs a process before its first client (CPU s).
    Raises ValueError for a number that cannot be, and where no fleet of any size keeps the deadline.
    """
    if model not in MODELS:
        raise ValueError(f"there is no model {model!r}, only {', '.join(MODELS)}")
    check_whole(clients=clients, least=1)
    check_finite(rate=rate, rtt=rtt, publish=publish)
    check_positive(deadline=deadline, heartbeat=heartbeat)
    if not meets(model, deadline, rate, rtt):
        raise ValueError(f"{model} cannot bring 95 % of the updates within {seconds(deadline)}, with nobody else there")
    plan = Capacity(clients, rate, deadline, model, units[model], limits or Limits(), rtt, heartbeat, publish)
    if min(plan.holds.values()) < 1:
        raise ValueError(f"a process cannot serve one client: {plan.binds} leaves no room, however many there are")
    return plan


MOVED = ("clients", "rate", "deadline", "a delivery", "a publish", "a heartbeat", "memory", "descriptors")


def moved(plan: Capacity, what: str, factor: float) -> Capacity:
    """The plan with one of MOVED multiplied. Raises ValueError as `capacity` does."""
    own = plan.units
    change: dict[str, Any] = {}
    if what in ("rate", "deadline"):
        change[what] = getattr(plan, what) * factor
    elif what == "clients":
        change[what] = round(plan.clients * factor)
    elif what == "a delivery":
        change["units"] = replace(own, delivery=replace(own.delivery, cpu=own.delivery.cpu * factor))
    elif what == "a publish":
        change["publish"] = plan.publish * factor
    elif what == "a heartbeat":
        change["units"] = replace(own, held=replace(own.held, cpu=own.held.cpu * factor))
    elif what == "memory":
        change["units"] = replace(own, held=replace(own.held, memory=own.held.memory * factor))
    elif what == "descriptors":
        change["limits"] = replace(plan.limits, descriptors=round(plan.limits.descriptors * factor))
    else:
        raise ValueError(f"nothing is called {what!r}: there are {', '.join(MOVED)}")
    given = {each.name: getattr(plan, each.name) for each in fields(plan)} | change
    return capacity(**given | {"units": {plan.model: given["units"]}})


def sensitivity(
    plan: Capacity, result: str = "processes", factor: float = 2.0, what: Sequence[str] = MOVED
) -> dict[str, tuple[float, float]]:
    """The `result` (an attribute) with each number divided by the factor and multiplied, over what it is now.

    The one that moves it most comes first. NaN where there is no such plan.
    """

    def over(name: str, by: float) -> float:
        try:
            return float(getattr(moved(plan, name, by), result) / getattr(plan, result))
        except ValueError:
            return math.nan

    found = {name: (over(name, 1 / factor), over(name, factor)) for name in what}

    def reach(name: str) -> float:
        return max(abs(math.log(each)) for each in found[name]) if not math.isnan(sum(found[name])) else math.inf

    return dict(sorted(found.items(), key=lambda item: -reach(item[0])))
