"""Unit costs that can be believed: all models in turn, twice, a robust slope, and an interval that says how sure it is.

    A B C D A B C D ─▶ Windows ─▶ cpu = idle + Σ cost x how often ─▶ Units, each with an Interval ─▶ told apart, or not
    models, two passes              least absolute deviations         bootstrap, and what runs differ by

Each window holds its load. What a server uses with nobody there, publishing included, is a term of its own (`idle`),
so a cost is what *one more* request, delivery, heartbeat or message takes. Each pass has fresh processes, for what
one has freed it keeps.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.cost.load import Load
from lab.cost.processes import ServerProcess, Window, observe
from lab.theory import LONG, MODELS, SHORT, SOCKET, STREAM, Resources, Units
from servers.feed import HEARTBEAT
from servers.models import model as find

QUIET = 1e-5  # updates per second: none, while we look
FAST_BEAT = 1.0  # s between heartbeats where they are measured: who answers no ping for 1.5 of them is given up
RUNS_DIFFER = 1.35  # the factor by which runs of one machine differ, each way: eleven runs, calm and busy
MEMORY_DIFFERS = 1.1
RESAMPLES = 200  # of the bootstrap
TEACHING, LIMIT = "as tutorials write it", "at the limit"  # the columns


class Interval(NamedTuple):
    """A cost, and between which values it is to be believed."""

    value: float
    low: float
    high: float

    def apart(self, other: "Interval") -> bool:
        """Whether the two are told apart: their intervals do not overlap."""
        return self.high < other.low or other.high < self.low


@dataclass(frozen=True)
class Setting:
    """One server process, and the windows that each pass looks through: so many connections, talking so often (s)."""

    looks: tuple[tuple[int, float], ...]
    rate: float = QUIET
    heartbeat: float = 0.0  # s; 0: the server's own
    interval: float = 0.1
    module: str = "servers"
    model: str = ""  # where it is not the measured one's


RISING = ((0, 0.0), (40, 0.0), (100, 0.0))
TWICE = ((0, 0.0), (100, 0.0))
SETTINGS: dict[str, tuple[Setting, ...]] = {
    SHORT: (Setting(RISING), Setting(TWICE, rate=100)),
    LONG: (Setting(RISING, rate=15),),
    SOCKET: (Setting(RISING, rate=50), Setting((*TWICE, (100, 0.05)), heartbeat=FAST_BEAT)),
    STREAM: (Setting(RISING, rate=50), Setting(TWICE, heartbeat=FAST_BEAT),
             Setting(((0, 0.0), (100, 0.05)), module="lab.cost.ladder", model="talking")),
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
    def main(self) -> Interval:
        """CPU seconds for each of the main load."""
        return self.cpu[self.per]

    @property
    def waited(self) -> float:
        """The largest share of a window's time in which somebody on this machine waited for a CPU."""
        return max(window.waited for windows in self.windows for window in windows)


@dataclass
class _Running:
    """A setting's process, and what was seen of it so far."""

    column: str
    model: str
    setting: Setting
    server: ServerProcess
    seen: list[Window] = field(default_factory=list)

    async def look(self, seconds: float) -> None:
        """One pass."""
        slug, rising = find(self.model).slug, itertools.groupby(self.setting.looks, key=lambda look: look[1])
        for talk, looks in rising:
            lasting = max(seconds, 1.1 * self.setting.heartbeat)
            clients = Load(slug, self.server.url, interval=self.setting.interval, talk=talk)
            try:
                for count, _ in looks:
                    self.seen.append(await observe(self.server, clients, count, lasting))
            finally:
                clients.close()


async def look(
    column: str = TEACHING, models: Sequence[str] = MODELS, *, seconds: float = 0.3
) -> dict[tuple[str, str], tuple[tuple[Window, ...], ...]]:
    """One pass through the models of a column, in processes started for it: by column and model, windows by setting.

    A model whose server does not have the column is left out. Raises UnknownModel for what is none, ValueError for one
    that no load is written for, RuntimeError when a connection is lost.
    """
    names = [find(each).name for each in models]
    for name in names:
        if name not in SETTINGS:
            raise ValueError(f"there is no load to measure {name} with")
    with ExitStack() as ends:
        groups = await asyncio.gather(*(_started(ends, column, name) for name in names))
        for one in itertools.chain(*groups):
            await one.look(seconds)
    seen = {name: tuple(tuple(one.seen) for one in group) for name, group in zip(names, groups, strict=True)}
    return {(column, name): windows for name, windows in seen.items() if windows}


def results(passes: Sequence[Mapping[tuple[str, str], tuple[tuple[Window, ...], ...]]]) -> list[Measured]:
    """Unit costs from several passes."""
    found: dict[tuple[str, str], tuple[tuple[Window, ...], ...]] = {}
    for one in passes:
        for which, windows in one.items():
            before = found.get(which, tuple(() for _ in windows))
            found[which] = tuple(a + b for a, b in zip(before, windows, strict=True))
    return _borrowed([result(model, column, windows) for (column, model), windows in found.items()])


async def _started(ends: ExitStack, column: str, model: str) -> list[_Running]:
    """The processes of a model's settings; none if its server has no such column."""
    started = []
    for setting in SETTINGS[model]:
        if column == LIMIT and (setting.heartbeat or setting.module != "servers"):
            continue  # what is not news is the same program in either column
        options: dict[str, float | bool] = {"rate": setting.rate, "fast": column == LIMIT}
        options["regular"] = setting.rate != QUIET
        if setting.module != "servers":
            options = {"rate": setting.rate}
        if setting.heartbeat:
            options["heartbeat"] = setting.heartbeat
        server = ServerProcess(setting.model or find(model).slug, module=setting.module, **options)
        try:
            await asyncio.to_thread(ends.enter_context, server)
        except RuntimeError:
            if column == LIMIT:
                return []
            raise
        started.append(_Running(column, model, setting, server))
    return started


def result(model: str, column: str, windows: tuple[tuple[Window, ...], ...]) -> Measured:
    """What these windows make of a model."""
    cpu = costs(model, windows)
    memory = _memory(windows[0])
    return Measured(model, column, windows, cpu, memory, _units(model, windows, cpu, memory))


def costs(model: str, windows: Sequence[Sequence[Window]]) -> dict[str, Interval]:
    """CPU seconds for each of what is counted: robust, not below nothing, and as sure as it is."""
    flat = [window for each in windows for window in each]
    happened = [name for name in SPENT[model] if any(getattr(w, name) for w in flat)]
    rows = [[getattr(w, name) / w.seconds for name in happened] for w in flat]
    idle = [[float(one is each) for each in windows] for one in windows for _ in one]
    x, y = np.hstack([np.array(rows), np.array(idle)]), np.array([w.cpu / w.seconds for w in flat])
    fit = _least_absolute(x, y)
    left = y - x @ fit
    spare = np.sqrt(len(y) / max(1, len(y) - x.shape[1]))
    chance = np.random.default_rng(0)
    again = [_least_absolute(x, x @ fit + spare * chance.choice(left, len(y))) for _ in range(RESAMPLES)]
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    return {
        name: _wide(float(fit[n]), float(low[n]), float(high[n]), RUNS_DIFFER)
        for n, name in enumerate([*happened, "idle"])
    }


def _least_absolute(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The costs with the least sum of absolute deviations, by least squares with weights: one bad window pulls little.

    A column that is nothing but noise may come out below 0.
    """
    scale = np.maximum(np.abs(x).max(axis=0), 1e-12)
    weights, fit = np.ones(len(y)), np.zeros(x.shape[1])
    for _ in range(15):
        root = np.sqrt(weights)[:, None]
        fit = np.linalg.lstsq(root * x / scale, root[:, 0] * y, rcond=None)[0] / scale
        weights = 1 / np.maximum(np.abs(y - x @ fit), 1e-4)
    return fit


def _memory(ramp: Sequence[Window]) -> Interval:
    """Bytes a connection, from each pass's ascent: the first connections load code, and are left out."""
    used = [window for window in ramp if window.connections]
    rises = zip(used[::2], used[1::2], strict=True)
    slopes = [(many.memory - few.memory) / (many.connections - few.connections) for few, many in rises]
    return _wide(float(np.median(slopes)), min(slopes), max(slopes), MEMORY_DIFFERS)


def _wide(value: float, low: float, high: float, runs: float) -> Interval:
    """No interval is narrower than what runs differ by, and nothing costs less than nothing."""
    value = max(0.0, value)
    return Interval(value, max(0.0, min(low, value / runs)), max(high, value * runs))


def _units(model: str, windows: Sequence[Sequence[Window]], cpu: Mapping[str, Interval], memory: Interval) -> Units:
    """Unit costs, bytes of TCP payload among them: those are counted, not fitted."""
    spent = {name: cpu[name].value if name in cpu else 0.0 for name in SPENT[model]}
    full, held = windows[0][-1], Resources(memory=memory.value)
    if model == LONG:  # one update in each answer: see `_borrowed`
        request = Resources(spent["requests"], full.up / full.requests, full.down / full.deliveries)
        return Units(request, Resources(), held, request)
    if model == SHORT:
        request = Resources(spent["requests"], full.up / full.requests, full.down / full.requests)
        loaded = windows[1][-1]
        inside = (loaded.down - request.down * loaded.requests) / loaded.deliveries
        return Units(request, Resources(spent["deliveries"], down=inside), held, request)
    delivery = Resources(spent["deliveries"], down=full.down / full.deliveries)
    if len(windows) == 1:  # heartbeats and messages are measured in the other column: see `_borrowed`
        return Units(Resources(), delivery, held, Resources())
    beating = next(w for w in windows[1] if w.connections)
    if not beating.beats:
        raise RuntimeError(f"{model}: no heartbeat came while its cost was measured: the machine is too busy")
    beat = Resources(spent["beats"], beating.up / beating.beats, beating.down / beating.beats)
    message, talking = Resources(), windows[-1][-1]
    if talking.messages:
        up, down = talking.up - beat.up * talking.beats, talking.down - beat.down * talking.beats
        message = Resources(spent["messages"], up / talking.messages, down / talking.messages)
    return Units(Resources(), delivery, held + beat * (1 / HEARTBEAT), message)


def _borrowed(measured: Sequence[Measured]) -> list[Measured]:
    """Where one model's own load does not show a cost, it borrows it from another's of the same column.

    An update inside an answer costs a long poll what it costs a poll, so a long poll's request is its slope without
    it. A message beside a pull or an event stream is a POST, measured beside the teaching stream; and heartbeats and
    messages are no news, so the fast path has no part in them.
    """
    found = {(each.column, each.model): each.units for each in measured}
    taught = {each.model: each.units for each in measured if each.column == TEACHING}
    posted = taught[STREAM].message if STREAM in taught else None
    done = []
    for each in measured:
        units, poll = each.units, found.get((each.column, SHORT))
        if each.model == LONG and poll:
            inside = poll.delivery
            cpu, down = max(0.0, units.request.cpu - inside.cpu), max(0.0, units.request.down - inside.down)
            alone = Resources(cpu, units.request.up, down)
            units = replace(units, request=alone, delivery=inside)
        other = taught.get(each.model)
        if each.column == LIMIT and other and not units.message.up and each.model in (SOCKET, STREAM):
            quiet = replace(other.held, memory=each.memory.value)
            units = replace(units, held=quiet, message=other.message)
        if each.model != SOCKET and posted:
            units = replace(units, message=posted)
        done.append(replace(each, units=units))
    return done


def in_column(measured: Sequence[Measured], column: str) -> dict[str, Units]:
    """The units of one column by model; where the column lacks a model, the teaching server's."""
    teaching = {each.model: each.units for each in measured if each.column == TEACHING}
    return teaching | {each.model: each.units for each in measured if each.column == column}


def compared(first: str, a: Interval, second: str, b: Interval) -> str:
    """Which of the two is cheaper, as far as it can be told."""
    if not a.apart(b):
        return "not told apart"
    return f"{first if a.value < b.value else second} is cheaper"
