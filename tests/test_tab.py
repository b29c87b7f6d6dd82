"""A situation that fits into a browser tab, played natively; and what stands there for compiled modules."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httptools
import pytest

from lab import tab as stage
from lab.tab.forecast import forecast
from lab.tab.situation import CONTROLS, SLUGS, Situation
from lab.virtual import run

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "notebooks" / "site" / "tab"
SITUATIONS: list[dict[str, Any]] = [
    {},
    {"rate": 2, "delay": 0.2, "cut": 20, "dark": 35, "darkness": 12, "heartbeat": 4, "hold": 5, "interval": 2},
    {"loss": 0.1, "seed": 7, "clients": 2, "seconds": 30},
    {"loss": 0.5, "delay": 2, "clients": 2, "seconds": 20},
]
LATE = {"dark": 15, "darkness": 300, "clients": 1, "seconds": 20, "rate": 2}  # the schedule is long over


def played(said: dict[str, Any], sources: dict[str, str] | None = None) -> dict[str, Any]:
    """A situation, natively; what it tells is left aside."""
    return stage.play(said, lambda news: None, sources)


def loaded(path: Path, name: str) -> ModuleType:
    """A file as a module that nobody else imports."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the stage ---


@pytest.mark.parametrize("said", [*SITUATIONS, LATE])
def test_a_cursor_loses_nothing_whatever_happens_to_the_network(said: dict[str, Any]) -> None:
    """Cut, black hole and loss: every model delivers everything, once and in order."""
    result = played(said)
    for counts in result["models"].values():
        assert counts["missing"] == counts["duplicated"] == counts["out_of_order"] == 0
        assert counts["delivered"] == counts["expected"] > 0
        assert counts["lost"] == 0


def test_over_a_calm_network_the_laws_hold() -> None:
    """Requests and delays of an hour are what the laws say, within five of their deviations."""
    said = {"seconds": 3600, "rate": 0.3, "clients": 1, "interval": 7, "delay": 0.1, "hold": 10}
    models = played(said)["models"]
    for model in "websocket", "sse":
        assert models[model]["requested"] == models[model]["requests"] == 0
        assert models[model]["mean"] == pytest.approx(models[model]["mean_delay"]) == pytest.approx(0.1)
    short, long = models["short-polling"], models["long-polling"]
    assert short["requested"] == pytest.approx(short["requests"], abs=1)
    assert short["mean"] == pytest.approx(short["mean_delay"], abs=5 * 7 / math.sqrt(12 * short["delivered"]))
    assert long["requested"] == pytest.approx(long["requests"], abs=5 * math.sqrt(long["requests"]))
    assert long["mean"] == pytest.approx(long["mean_delay"], rel=0.1)


BROKEN = ("position = feed.position(after)", "position = feed.head if after else feed.position(after)")


def lost_as_the_law_says(counts: dict[str, Any]) -> None:
    """The share that is missing is the law's, within five deviations of a share that is counted."""
    share, law = counts["missing"] / counts["expected"], counts["lost_without_cursor"]
    assert 0.1 < law < 0.9
    assert share == pytest.approx(law, abs=5 * math.sqrt(law * (1 - law) * 2 / counts["expected"]) + 0.01)


def test_a_server_that_ignores_the_cursor_loses_what_the_law_says() -> None:
    """What is published between an answer and the next request is gone."""
    said = {"models": ["long-polling"], "rate": 3, "delay": 0.1, "seconds": 600, "clients": 1}
    source = stage.server_source("long-polling")
    assert BROKEN[0] in source
    lost_as_the_law_says(played(said, {"server/long-polling": source.replace(*BROKEN)})["models"]["long-polling"])


@pytest.mark.parametrize("said", SITUATIONS)
def test_without_a_thread_the_run_is_the_same(said: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """News and result are equal, to the byte."""
    told: list[list[dict[str, Any]]] = []
    results = []
    for threads in True, False:
        monkeypatch.setattr(run, "_threads", threads)
        told.append([])
        results.append(stage.play(said, told[-1].append))
    assert json.dumps(results[0]) == json.dumps(results[1])
    assert json.dumps(told[0]) == json.dumps(told[1])


def test_without_a_thread_a_run_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop looks at the real clock by itself, and the thread is in real time again."""
    monkeypatch.setattr(run, "_threads", False)
    monkeypatch.setattr("lab.tab.stage.LIMIT", 0.3)
    assert "real time" in played({"seconds": 3600, "rate": 10, "clients": 10})["error"]
    monkeypatch.setattr("lab.tab.stage.LIMIT", 60)
    assert "models" in played({"seconds": 10})


def test_what_is_told_adds_up_to_the_result() -> None:
    """Every request and delivery is told, and what was still open is told again when it ends."""
    news: list[dict[str, Any]] = []
    result = stage.play({"cut": 20}, news.append)
    assert sum(len(each["published"]) for each in news) == result["published"]
    for model, counts in result["models"].items():
        lanes = [each["lanes"][model] for each in news]
        requests = {tuple(r[:2]): r for lane in lanes for r in lane["requests"]}
        assert len(requests) == counts["asked"]
        assert sum(len(lane["delivered"]) for lane in lanes) == counts["delivered"]
        assert all(r[3] is not None for r in requests.values())


MISTAKES: list[tuple[str, Callable[[str], str], str]] = [
    ("server/sse", lambda text: text.replace("feed.opening(", "feed.openning("), "AttributeError"),
    ("server/sse", lambda text: text.replace("return news.encoded(update_blocks)", "return nws"), "NameError"),
    ("server/websocket", lambda text: text.replace("self.read = news.position", "self.read = nws"), "NameError"),
    ("server/long-polling", lambda text: text.replace("hold = drawn(wait)", "hold = 1 / 0"), "ZeroDivisionError"),
    ("server/short-polling", lambda text: text + "\nx = (\n", "SyntaxError"),
    ("server/short-polling", lambda text: text + "\nraise RuntimeError('no')\n", "RuntimeError: no"),
    ("client/sse", lambda text: text.replace("log.cursor", "log.cursr"), "AttributeError"),
    ("client/websocket", lambda text: text.replace("json.loads(message)", "json.load(message)"), "AttributeError"),
]


@pytest.mark.parametrize(("where", "change", "said"), MISTAKES)
def test_a_mistake_is_told_with_its_line(where: str, change: Callable[[str], str], said: str) -> None:
    """Whether it shows when the source is read, when a request comes, or in the middle of a stream."""
    kind, model = where.split("/")
    usual = {"server": stage.server_source, "client": stage.client_source}[kind](model)
    source = change(usual)
    assert source != usual
    result = played({"models": [model]}, {where: source})
    assert said in result["error"]
    assert result["where"] == where
    changed = [n for n, line in enumerate(source.splitlines(), 1) if line not in usual.splitlines()]
    assert result["line"] in changed


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "no function 'create_app'"),
        ("def create_app(feed, **_):\n    return None\n", "returns a Service"),
        ("create_app = len\n", "TypeError"),
    ],
)
def test_a_source_without_what_is_asked_of_it_is_told(source: str, said: str) -> None:
    """One line says what is missing; an empty one is a source too."""
    result = played({"models": ["sse"]}, {"server/sse": source})
    assert said in result["error"]
    assert result["where"] == "server/sse"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("async def client(url, log, heartbeat):\n    raise SystemExit\n", "ends the program"),
        ("async def client(url, log, heartbeat):\n    pass\n", "no request"),
        ("import threading\nasync def client(url, log, heartbeat):\n    threading.Thread().start()\n", "real time"),
    ],
)
def test_a_client_that_does_not_play_along_is_told(source: str, said: str) -> None:
    """It leaves the program, asks nothing, or would run in real time."""
    assert said in played({"models": ["sse"], "seconds": 10}, {"client/sse": source})["error"]


@pytest.mark.parametrize(
    "said",
    [
        {"rate": -1}, {"rate": math.nan}, {"rate": "1"}, {"rate": True}, {"clients": 1.5}, {"clients": 11},
        {"models": []}, {"models": "sse"}, {"models": ["mqtt"]}, {"models": ["sse", "sse"]}, {"wind": 1},
        {"seconds": 1e9}, {"interval": 0.1}, {"models": [1]}, {"models": 3},
    ],
)  # fmt: skip
def test_what_no_control_could_say_is_refused_in_one_line(said: dict[str, Any]) -> None:
    """A link may say anything."""
    result = played(said)
    assert result["error"]
    assert "\n" not in result["error"]


def test_the_controls_are_the_situation() -> None:
    """Each has its field, and its usual value is one that it can take."""
    usual = Situation.of({})
    assert {control.name for control in CONTROLS} | {"models"} == set(usual.__dataclass_fields__)
    for control in CONTROLS:
        assert control.least <= control.usual <= control.most
        assert getattr(usual, control.name) == control.usual
        steps = (control.usual - control.least) / control.step
        assert steps == pytest.approx(round(steps))


# --- the stand-ins ---

REQUESTS = [
    b"GET /events?after=a%20b HTTP/1.1\r\nHost: x\r\nLast-Event-ID: e-1\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /updates HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /updates HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"nonsense\r\n\r\n",
]


class Heard:
    """What a parser calls back, in the order of the calls."""

    def __init__(self, library: Any) -> None:
        self.library, self.calls = library, list[Any]()
        self.parser = library.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.calls.append(("url", url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self.calls.append(("header", name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        self.calls.append((parser.get_method(), parser.get_http_version(), parser.should_keep_alive()))
        self.calls.append(parser.should_upgrade())

    def on_body(self, body: bytes) -> None:
        self.calls.append(("body", body))

    def on_message_complete(self) -> None:
        self.calls.append("complete")

    def feed(self, data: bytes) -> None:
        """Hand it on; what is raised is heard, too."""
        try:
            self.parser.feed_data(data)
        except self.library.HttpParserUpgrade:
            self.calls.append("upgrade")
        except self.library.HttpParserError:
            self.calls.append("error")


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_stand_in_for_httptools_calls_back_as_httptools_does(request_: bytes) -> None:
    """The same calls with the same words, of whole requests."""
    real, other = Heard(httptools), Heard(loaded(HERE / "standins" / "httptools.py", "standin_httptools"))
    for heard in real, other:
        heard.feed(request_)
    assert other.calls == real.calls


def test_the_stand_in_for_httptools_passes_on_what_a_callback_raises() -> None:
    """As the context of its own error, which on_uvicorn.py looks at."""
    library: Any = loaded(HERE / "standins" / "httptools.py", "standin_httptools")

    class Refusing(Heard):
        def on_headers_complete(self) -> None:
            raise KeyError("mine")

    with pytest.raises(library.HttpParserError) as caught:
        Refusing(library).parser.feed_data(REQUESTS[0])
    assert isinstance(caught.value.__context__, KeyError)


def test_the_laws_say_the_same_with_the_stand_in_for_numpy() -> None:
    """Of a hundred situations, to the last digits."""
    said = [
        {"rate": rate, "delay": delay, "interval": interval, "hold": hold}
        for rate in (0, 0.1, 3) for delay in (0, 0.05, 2) for interval in (0.5, 60) for hold in (1, 60)
    ]  # fmt: skip
    program = (
        "import json, sys; from lab.tab.forecast import forecast; from lab.tab.situation import Situation;"
        "import numpy; assert 'standins' in numpy.__file__;"
        "said = json.load(sys.stdin);"
        "print(json.dumps([forecast(Situation.of(each), m) for each in said for m in Situation.of(each).models]))"
    )
    paths = [str(HERE / "standins"), str(ROOT), str(ROOT / "notebooks")]
    answer = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {program}"],
        input=json.dumps(said), capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    natively = [forecast(Situation.of(each), model) for each in said for model in SLUGS]
    for other, mine in zip(json.loads(answer), natively, strict=True):
        assert [number is None for number in other] == [number is None for number in mine]
        assert [n for n in other if n is not None] == pytest.approx([n for n in mine if n is not None], rel=1e-12)
