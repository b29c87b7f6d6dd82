"""Nothing endless: whatever numbers the lab is given, it gives an answer or one clear ValueError, and soon."""

import asyncio
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab import clients, theory
from lab.bench import ClientLog, schedule, table
from lab.bench.edits import plan
from lab.bench.schedule import Schedule
from lab.bench.trial import Trial
from lab.cost.load import Load
from lab.cost.processes import ServerProcess
from lab.figures import delay_ecdf, request_bars, timeline
from lab.proxies.wire import Wire
from lab.theory import simulate
from lab.virtual import Link, run_virtual
from servers import sse
from servers.limits import check_finite, check_positive, check_whole
from servers.sources import synthetic_edits

SOON = 30.0  # seconds, on the busiest machine; what is endless is never that quick
NUMBERS = st.one_of(
    st.sampled_from([0, 0.0, -1, -0.0, 1, 5, 1e-320, 1e-9, 1e9, 1e300, math.inf, -math.inf, math.nan, True]),
    st.floats(),
    st.floats(0, 100),
    st.integers(-5, 1000),
)


async def client(url: str, log: Any) -> None:
    """Do nothing: it is never run."""


def make_wire(**options: Any) -> None:
    with Wire("127.0.0.1:9", **options):
        pass


def first_edits(**options: Any) -> None:
    list(itertools.islice(synthetic_edits(**options), 10))


def simulated(interval: Any, jitter: Any, seconds: Any, transit: Any, hold: Any) -> None:
    times = simulate.poisson(1.0, 3.0)
    simulate.polling(times, seconds, simulate.every(interval, jitter), transit=transit, hold=hold)


MAKERS: dict[Callable[..., Any], tuple[str, ...]] = {
    Schedule.poisson: ("rate", "seconds", "payload"),
    Schedule.periodic: ("every", "seconds", "phase"),
    Schedule.bursts: ("rate", "size", "seconds", "within"),
    Link: ("delay", "jitter", "loss", "rate", "window", "rto"),
    make_wire: ("delay", "jitter", "rate"),
    plan: ("edits", "files", "seconds", "bursts", "size"),
    first_edits: ("rate", "payload", "files"),
    simulate.poisson: ("rate", "seconds"),
    simulate.bursts: ("rate", "size", "seconds", "within"),
    simulate.adaptive: ("fastest", "slowest", "factor"),
    simulated: ("interval", "jitter", "seconds", "transit", "hold"),
}
LAWS = [
    function
    for name, function in vars(theory).items()
    if name[0].islower() and name not in ("crossing", "work", "meets") and inspect.isfunction(function)
]


def outcome(make: Callable[..., Any], numbers: dict[str, Any]) -> tuple[Any, str | None]:
    """What comes out, or else the text of the ValueError."""
    try:
        return make(**numbers), None
    except ValueError as error:
        return None, str(error)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bounds that are reached sooner, so that an example stays within a moment."""
    monkeypatch.setattr(schedule, "MOST_EDITS", 2000)
    monkeypatch.setattr(schedule, "MOST_BYTES", 2**20)
    monkeypatch.setattr("lab.bench.edits.MOST_EDITS", 500)
    monkeypatch.setattr("lab.bench.edits.MOST_BYTES", 2**20)
    monkeypatch.setattr(simulate, "MOST_ROUNDS", 1000)
    monkeypatch.setattr(simulate, "MOST_UPDATES", 10_000)
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 2 * SOON


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__qualname__)
@settings(max_examples=60, deadline=1000 * SOON, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_the_numbers_there_is_an_end(make: Callable[..., Any], data: st.DataObject) -> None:
    """A public constructor returns, or raises one ValueError of one line, for whatever numbers."""
    numbers = {name: data.draw(NUMBERS, label=name) for name in MAKERS[make]}
    _, refusal = outcome(make, numbers)
    assert refusal is None or (0 < len(refusal) < 200 and "\n" not in refusal)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@settings(max_examples=60, deadline=1000 * SOON, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_law_never_answers_with_no_number(law: Callable[..., Any], data: st.DataObject) -> None:
    """A law gives a number or raises ValueError: never NaN, never an error of the arithmetic."""
    names = [name for name in inspect.signature(law).parameters if name not in ("model", "function")]
    sane = st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.sampled_from([-1.0, math.nan, math.inf]))
    numbers = {name: data.draw(sane, label=name) for name in names}
    with np.errstate(all="ignore"):
        answer, refusal = outcome(law, numbers)
    assert refusal or not np.isnan(answer).any(), numbers


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Schedule.poisson(-1, 5), "rate is a number from 0 up, not -1"),
        (lambda: Schedule.poisson(math.nan, 5), "rate is a number from 0 up, not nan"),
        (lambda: Schedule.poisson(1, math.inf), "seconds is a number from 0 up, not inf"),
        (lambda: Schedule.poisson(1000, 5), "a schedule has 2,000 edits at most, not 5,000"),
        (lambda: Schedule.poisson(100, 10, payload=2**12), "a schedule's contents are 1,048,576 bytes at most"),
        (lambda: Schedule.periodic(0, 5), "every is a number above 0, not 0"),
        (lambda: Schedule.periodic(-1, 5), "every is a number above 0, not -1"),
        (lambda: Schedule.bursts(1, 0, 5), "size is a whole number from 1 to 2,000, not 0"),
        (lambda: Schedule.at(itertools.count(), 5), "a schedule has 2,000 edits at most"),
        (lambda: Schedule.at([math.nan], 5), "the planned times ascend from 0 to 5 s"),
        (lambda: Trial(sse.create_app, client, Schedule.at([], 1), clients=-1), "clients is a whole number from 1 to"),
        (lambda: Trial(sse.create_app, client, Schedule.at([], 1), grace=math.inf), "grace is a number from 0 up"),
        (lambda: Trial(sse.create_app, client, Schedule.at([], 1)).virtual(rate=0), "rate is a number above 0, not 0"),
        (lambda: asyncio.run(Trial(sse.create_app, client, Schedule.at([], 1)).live(delay=-1)), "delay is a number"),
        (lambda: run_virtual(lambda net: client("", net), wall=math.inf), "wall is a number above 0, not inf"),
        (lambda: run_virtual(lambda net: client("", net), limit=-1), "limit is a number from 0 up, not -1"),
        (lambda: plan(30), "bursts is a whole number from 0 to 3, not 6"),
        (lambda: next(synthetic_edits(-1)), "rate is a number from 0 up, not -1"),
        (lambda: Load("sse", "http://127.0.0.1:80", interval=0), "interval is a number above 0, not 0"),
        (lambda: theory.polling_mean_delay(0), "interval is a number above 0, not 0"),
        (lambda: theory.polling_mean_delay(np.array([1.0, math.nan])), "interval is a number above 0, not array"),
        (lambda: theory.work("NDJSON", 1.0), "there is no model 'NDJSON', only short polling, "),
        (lambda: simulate.polling(np.array([]), 100.0, simulate.every(0.0)), "there is no end to the requests"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong: Callable[[], Any], says: str) -> None:
    """One clear sentence says which number it is, what it may be, and what it was."""
    with pytest.raises(ValueError, match=r"^.*" + says.replace("(", r"\(")):
        wrong()


def test_nothing_ever_happens() -> None:
    """A rate of 0 is a schedule like any other: an empty one; and the laws have a limit there."""
    for empty in (Schedule.poisson(0, 5), Schedule.bursts(0, 10, 5), Schedule.at([], 5), Schedule.poisson(5, 0)):
        assert (len(empty), list(empty.times)) == (0, [])
    assert list(synthetic_edits(0)) == []
    assert len(simulate.poisson(0, 100)) == len(simulate.bursts(0, 10, 100)) == 0
    assert theory.long_polling_request_rate(0, 0.05, 30) == pytest.approx(1 / 30.05)
    assert theory.long_polling_period_sd(0, 0.05, 30) == 0
    assert theory.long_polling_delay_quantile(0.5, 0, 0.05, 30, 0.025) == 0.025
    assert theory.polling_best_interval(0, 1, 1) == math.inf
    assert list(theory.polling_best_interval(np.array([0.0, 2.0]), 1, 1)) == [math.inf, 1.0]
    assert theory.polling_fresh_share(0, 5, 0.025) == 1


@pytest.mark.filterwarnings("error")
def test_a_run_in_which_nothing_happens_has_a_table_and_figures() -> None:
    """Nothing divides by 0, and nothing is drawn with a warning, where no update was published."""

    async def listen(url: str, log: ClientLog) -> None:
        async for update in clients.sse(url, log.cursor, log=log):
            raise AssertionError(update)

    runs = [Trial(sse.create_app, listen, Schedule.poisson(0, 5), clients=n).virtual() for n in (1, 3)]
    for draw in (delay_ecdf, timeline, request_bars):
        for picture in (draw(runs), draw(runs[0])):
            assert "0 of 0 deliveries came" in picture.alt
    assert repr(table(runs)).splitlines()[-1].split()[-2:] == ["-", "-"]


def test_a_server_process_refuses_as_its_command_line_does() -> None:
    """A number that cannot be is said in the command's own line, and no process is left."""
    with pytest.raises(RuntimeError, match="--rate: a number from 0 up, not 'nan'"):
        ServerProcess("sse", rate=math.nan).__enter__()


def test_numbers_of_every_kind_are_numbers() -> None:
    """What has the size of a float passes, whatever made it; text and truth values do not."""
    check_finite(a=np.float64(1), b=np.int64(2), c=3)
    check_positive(a=np.float32(1), b=math.pi)
    check_whole(a=np.int64(2), b=3)
    for check in (check_finite, check_positive, check_whole):
        for wrong in (True, "1", None, [1], math.nan, 10**400 if check is check_positive else -(10**400)):
            with pytest.raises(ValueError, match=r"^my number is a "):
                check(my_number=wrong)
