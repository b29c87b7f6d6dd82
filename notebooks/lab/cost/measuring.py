"""Unit costs that can be believed: all models in turn, twice, a robust slope, and an interval that says how sure it is.

    A B C D A B C D ─▶ Windows ─▶ cpu = idle + Σ cost x how often ─▶ Units, each with an Interval ─▶ told apart, or not
    models, two passes              least absolute deviations         bootstrap, and what runs differ by

Each window holds its load, on processors that never sleep (lab.cost.processes). What a server uses with nobody there,
publishing included, is a term of its own (`idle`), so a cost is what *one more* request, delivery, heartbeat or message
takes. Memory is the first pass's, for what a process has freed it keeps.
"""

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.cost.load import Load
from lab.cost.processes import ServerProcess, Window, kept_awake, observe
from lab.theory import LONG, MODELS, SHORT, SOCKET, STREAM, Resources, Units
from servers.feed import HEARTBEAT
from servers.models import model as find

QUIET = 1e-5  # updates per second: none, while we look
FAST_BEAT = 2.0  # s between heartbeats where they are measured: who answers no ping for 1.5 of them is given up
RUNS_DIFFER = 2.3  # the factor by which runs of one machine differ, each way, calm and busy: tests/benchmarks/verdicts
SHARED = 1.65  # of it: the machine's part, alike in all of one run; by the rest two costs of one run differ
MEMORY_DIFFERS = 1.15
PASSES = 2
RESAMPLES = 200  # of the bootstrap
SILENT = "not told apart"  # no verdict
TEACHING, LIMIT = "as tutorials write it", "at the limit"  # the columns
COLUMNS = (TEACHING, LIMIT)


class Interval(NamedTuple):
    """A cost, and between which values it is to be believed; `shared`: the machine's part, alike in all of one run."""

    value: float
    low: float
    high: float
    shared: float = 1.0

    def apart(self, other: "Interval") -> bool:
        """Whether the two, of one run, are told apart: without what they share their intervals do not overlap."""
        first, second = ((each.low * each.shared, each.high / each.shared) for each in (self, other))
        return first[1] < second[0] or second[1] < first[0]

    def below(self, other: "Interval") -> bool | None:
        """Whether this cost is less than the other; None where the two are not told apart."""
        return self.value < other.value if self.apart(other) else None


@dataclass(frozen=True)
class Setting:
    """One server process, and how many connections its windows have; `main` is looked at in every pass.

    What is no news comes once: with a `heartbeat` (s), or `still`, all such processes are watched at the same time, for
    they have next to nothing to do; `talk` (s) is how often each connection then says something.
    """

    counts: tuple[int, ...]
    rate: float = QUIET
    heartbeat: float = 0.0  # 0: the server's own
    talk: float = 0.0
    still: bool = False  # it is there for the memory
    interval: float = 0.1
    module: str = "servers"
    model: str = ""  # where it is not the measured one's

    @property
    def main(self) -> bool:
        """Whether it is news that its windows are about."""
        return not (self.heartbeat or self.talk or self.still)


RISING, MOST = (0, 40, 100), 100
SETTINGS: dict[str, tuple[Setting, ...]] = {
    SHORT: (Setting(RISING), Setting((0, MOST), rate=100)),
    LONG: (Setting(RISING, rate=15), Setting(RISING, still=True)),
    SOCKET: (Setting(RISING, rate=50), Setting((0, MOST), heartbeat=FAST_BEAT, talk=0.05)),
    STREAM: (Setting(RISING, rate=50), Setting((0, MOST), heartbeat=FAST_BEAT),
             Setting((0, MOST), talk=0.05, module="lab.cost.ladder", model="talking")),
}  # fmt: skip
PER = {SHORT: "requests", LONG: "requests", SOCKET: "deliveries", STREAM: "deliveries"}
SPENT = {
    SHORT: ("requests", "deliveries"),
    LONG: ("requests",),  # each is answered by one delivery
    SOCKET: ("deliveries", "beats", "messages"),
    STREAM: ("deliveries", "beats", "messages"),
}  # what CPU time goes into


@dataclass(frozen=True)
class Measured:
    """One model's unit costs in one column, and the windows that they come from, by setting."""

    model: str
    column: str
    windows: tuple[tuple[Window, ...], ...]
    cpu: Mapping[str, Interval]  # seconds for each of what is counted, and for an "idle" second while updates come
    memory: Interval  # bytes a connection
    units: Units

    @property
    def per(self) -> str:
        """What the model's main load consists of."""
        return PER[self.model]

    @property
    def ramp(self) -> tuple[Window, ...]:
        """The windows of the main load."""
        return self.windows[0]

    @property
    def ascent(self) -> tuple[Window, ...]:
        """The two windows that the memory comes from."""
        return _ascent(self.model, self.windows)

    @property
    def main(self) -> Interval:
        """CPU seconds for each of the main load."""
        return self.cpu[self.per]

    @property
    def others(self) -> float:
        """The share of the machine that others took, in all windows together."""
        seen = [window for windows in self.windows for window in windows]
        return max(0.0, sum(w.others * w.seconds for w in seen) / sum(w.seconds for w in seen))


@dataclass
class _Running:
    """A setting's process, and what was seen of it so far."""

    column: str
    model: str
    setting: Setting
    server: ServerProcess
    seen: list[Window] = field(default_factory=list)

    async def look(self, seconds: float, *, talk: float = 0.0) -> None:
        """A window with each number of connections; the one with none, which is always the same, is seen once.

        What its setting is about comes into each with connections, at least once.
        """
        counts = self.setting.counts[1:] if self.seen else self.setting.counts
        its = self.setting
        comes = {PER[self.model]: its.main, "deliveries": its.rate > QUIET, "beats": its.heartbeat}
        comes |= {"messages": talk, "up": talk}  # what is answered in a window may have been said before it
        due = [name for name, so in comes.items() if so]
        clients = Load(find(self.model).slug, self.server.url, interval=its.interval, talk=talk)
        try:
            for count in counts:
                self.seen.append(await observe(self.server, clients, count, seconds, due=due))
        finally:
            clients.close()


async def measure(
    models: Sequence[str] = MODELS,
    columns: Sequence[str] = COLUMNS,
    *,
    seconds: float = 0.25,
    passes: int = PASSES,
    within: float = 60.0,
) -> list[Measured]:
    """Every model's unit costs in every column, in processes of their own, which take turns.

    On a machine so busy that another pass would not be over `within` so many seconds there is none, and the intervals
    are as wide as the windows there are make them.
    Raises UnknownModel for what is none, ValueError for one that no load is written for, RuntimeError when a connection
    is lost, or a server says nothing.
    """
    names = [find(each).name for each in models]
    for name in names:
        if name not in SETTINGS:
            raise ValueError(f"there is no load to measure {name} with")
    running = [
        _Running(column, name, setting, _server(column, name, setting))
        for column, name in itertools.product(columns, names)
        for setting in SETTINGS[name]
        if not (setting.model and column != columns[0])  # a route of the application: one program in either column
    ]
    begin = time.monotonic()
    with ExitStack() as ends:
        await asyncio.gather(*(asyncio.to_thread(ends.enter_context, one.server) for one in running))
        ends.enter_context(kept_awake())
        for one in running:
            ends.callback(one.server.process.terminate)  # all of them, before any is waited for
        idle = [one for one in running if one.setting.heartbeat or one.setting.still]
        await asyncio.gather(*(one.look(max(seconds, 1.1 * FAST_BEAT)) for one in idle))
        for one in running:
            if one.setting.talk:
                await one.look(seconds, talk=one.setting.talk)
        for number in range(passes):
            since = time.monotonic()
            for one in running:
                if one.setting.main:
                    await one.look(seconds)
            now = time.monotonic()
            if number + 1 < passes and now - begin + (now - since) > within:
                break
    found = itertools.groupby(running, key=lambda one: (one.column, one.model))
    return _borrowed([result(model, column, tuple(tuple(o.seen) for o in own)) for (column, model), own in found])


def _server(column: str, model: str, setting: Setting) -> ServerProcess:
    """The process of a setting, not yet started."""
    if setting.model:
        return ServerProcess(setting.model, module=setting.module, rate=setting.rate)
    options: dict[str, Any] = {"rate": setting.rate, "fast": column == LIMIT}
    options["regular"] = setting.rate != QUIET
    if setting.heartbeat:
        options["heartbeat"] = setting.heartbeat
    return ServerProcess(find(model).slug, **options)


def result(model: str, column: str, windows: tuple[tuple[Window, ...], ...]) -> Measured:
    """What these windows make of a model."""
    cpu = costs(model, windows)
    memory = _memory(_ascent(model, windows))
    return Measured(model, column, windows, cpu, memory, _units(model, windows, cpu, memory))


def costs(model: str, windows: Sequence[Sequence[Window]]) -> dict[str, Interval]:
    """CPU seconds for each of what is counted: robust, not below nothing, and as sure as it is.

    What runs differ by is a share of all that was done in a window, so beside much else a small cost is known badly.
    """
    flat = [window for each in windows for window in each]
    happened = [name for name in SPENT[model] if any(getattr(w, name) for w in flat)]
    rows = [[getattr(w, name) / w.seconds for name in happened] for w in flat]
    idle = [[float(one is each) for each in windows] for one in windows for _ in one]
    x, y = np.hstack([np.array(rows), np.array(idle)]), np.array([w.cpu / w.seconds for w in flat])
    [fit] = _least_absolute(x, y[None, :])
    left = y - x @ fit
    spare = np.sqrt(len(y) / max(1, len(y) - x.shape[1]))
    chance = np.random.default_rng(0)
    again = _least_absolute(x, x @ fit + spare * chance.choice(left, (RESAMPLES, len(y))))
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    for n in range(len(happened)):
        most = x[x[:, n].argmax(), : len(happened)]
        slack = (1 - SHARED / RUNS_DIFFER) * (most @ np.maximum(fit[: len(happened)], 0)) / most[n]
        low[n], high[n] = min(low[n], fit[n] - slack), max(high[n], fit[n] + slack)
    return {
        name: _wide(float(fit[n]), float(low[n]), float(high[n]), RUNS_DIFFER, SHARED)
        for n, name in enumerate([*happened, "idle"])
    }


def _least_absolute(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each row of y, the costs with the least sum of absolute deviations: one bad window pulls little.

    By least squares whose weights are renewed from the deviations. A column that is nothing but noise may come out
    below 0.
    """
    scale = np.maximum(np.abs(x).max(axis=0), 1e-12)
    unit = x / scale
    slight = 1e-9 * np.eye(x.shape[1])  # what never happened costs nothing, instead of anything
    weights, fit = np.ones(y.shape), np.zeros((len(y), x.shape[1]))
    for _ in range(15):
        square = np.einsum("rn,ni,nj->rij", weights, unit, unit)
        fit = np.linalg.solve(square + slight, np.einsum("rn,ni,rn->ri", weights, unit, y)[..., None])[..., 0]
        weights = 1 / np.maximum(np.abs(y - fit @ unit.T), 1e-4)
    costs: NDArray[np.float64] = fit / scale
    return costs


def _ascent(model: str, windows: Sequence[tuple[Window, ...]]) -> tuple[Window, ...]:
    """Where memory is weighed; of long polls while all are held: where news comes, some are just being answered."""
    few_and_many = [window for window in windows[-1 if model == LONG else 0] if window.connections][:2]
    return tuple(few_and_many)


def _memory(ascent: Sequence[Window]) -> Interval:
    """Bytes a connection, from the first ascent: the first connections load code, and are left out."""
    few, many = ascent
    slope = (many.memory - few.memory) / (many.connections - few.connections)
    return _wide(slope, slope, slope, MEMORY_DIFFERS)


def _wide(value: float, low: float, high: float, runs: float, shared: float = 1.0) -> Interval:
    """No interval is narrower than what runs differ by, and nothing costs less than nothing."""
    value = max(0.0, value)
    low, high = min(low, value / runs * shared), max(high, value * runs / shared)
    return Interval(value, max(0.0, low / shared), high * shared, shared)


def _units(model: str, windows: Sequence[Sequence[Window]], cpu: Mapping[str, Interval], memory: Interval) -> Units:
    """Unit costs, bytes of TCP payload among them: those are counted, not fitted."""
    spent = {name: cpu[name].value if name in cpu else 0.0 for name in SPENT[model]}
    full, held = windows[0][-1], Resources(memory=memory.value)
    if model == LONG:  # one update in each answer: see `_borrowed`
        request = Resources(spent["requests"], full.up / full.requests, full.down / full.deliveries)
        return Units(request, Resources(), held, request)
    if model == SHORT:
        down = float(np.median([w.down / w.requests for w in windows[0] if w.requests]))  # answers may lag a window
        request = Resources(spent["requests"], full.up / full.requests, down)
        loaded = windows[1][-1]
        inside = (loaded.down - request.down * loaded.requests) / loaded.deliveries
        return Units(request, Resources(spent["deliveries"], down=inside), held, request)
    delivery = Resources(spent["deliveries"], down=full.down / full.deliveries)
    beating = next(w for w in windows[1] if w.connections)
    beat = Resources(spent["beats"], beating.up / beating.beats, beating.down / beating.beats)
    message, talking = Resources(), windows[-1][-1]
    if talking.messages:
        up, down = talking.up - beat.up * talking.beats, talking.down - beat.down * talking.beats
        message = Resources(spent["messages"], up / talking.messages, down / talking.messages)
    return Units(Resources(), delivery, held + beat * (1 / HEARTBEAT), message)


def _borrowed(measured: Sequence[Measured]) -> list[Measured]:
    """Where one model's own load does not show a cost, it borrows it from another's.

    An update inside an answer costs a long poll what it costs a poll of its column, so a long poll's request is its
    slope without it. A message beside a pull or an event stream is a POST to a route of the application's, which is the
    same program in both columns: it is measured once, beside the first column's stream.
    """
    found = {(each.column, each.model): each.units for each in measured}
    posted = next((e.units.message for e in measured if e.model == STREAM and e.units.message.up), None)
    done = []
    for each in measured:
        units, poll = each.units, found.get((each.column, SHORT))
        if each.model == LONG and poll:
            inside = poll.delivery
            cpu, down = max(0.0, units.request.cpu - inside.cpu), max(0.0, units.request.down - inside.down)
            units = replace(units, request=Resources(cpu, units.request.up, down), delivery=inside)
        if each.model != SOCKET and posted:
            units = replace(units, message=posted)
        done.append(replace(each, units=units))
    return done


def by_model(measured: Sequence[Measured], column: str) -> dict[str, Measured]:
    """One column, by model."""
    return {each.model: each for each in measured if each.column == column}


def in_column(measured: Sequence[Measured], column: str) -> dict[str, Units]:
    """The units of one column, by model."""
    return {model: each.units for model, each in by_model(measured, column).items()}


def cheaper(one: Measured, other: Measured, of: str = "main") -> str:
    """Which of two models, or of one model's two programs, is told to take less CPU for its main load, or `memory`."""
    names = (one.model, other.model) if one.model != other.model else (one.column, other.column)
    return compared(names[0], getattr(one, of), names[1], getattr(other, of))


def compared(first: str, a: Interval, second: str, b: Interval) -> str:
    """Which of the two is cheaper, as far as it can be told."""
    if not a.apart(b):
        return SILENT
    return f"{first if a.value < b.value else second} is cheaper"
