"""The pages on which servers and clients run in a browser tab: built once, and used in real Chromium."""

import base64
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from lab import tab as stage
from lab.tab.situation import CONTROLS, SLUGS
from tests.support_browser import Tab, browser, tab
from tests.test_tab import BROKEN, HERE, ROOT, SITUATIONS, lost_as_the_law_says, played

__all__ = ["browser", "tab"]

PAGES = {**{slug: [slug] for slug in SLUGS}, "four-models": list(SLUGS)}
LONG = 240_000.0  # ms: Python itself is fetched and started, on a machine that may be busy


# --- the build ---


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as the site does. Without npm: skipped, on CI failed."""
    if shutil.which("npm") is None:
        reason = "needs npm, which brings Pyodide"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    out = tmp_path_factory.mktemp("tab")
    done = subprocess.run(
        [sys.executable, str(HERE / "build.py"), str(out)], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) < 20
    return out


def test_the_wheels_are_the_tested_releases_by_hash() -> None:
    """requirements.txt is what .ci/constraints.txt names, each with a hash."""
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / ".ci" / "constraints.txt").read_text(), re.MULTILINE)
    tested = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned}
    lines = (HERE / "requirements.txt").read_text().splitlines()[1:]
    assert len(lines) > 15
    for line in lines:
        match = re.fullmatch(r"([\w-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert match is not None
        assert tested[match[1]] == match[2]


def test_the_same_parts_make_the_same_pages(built: Path, tmp_path: Path) -> None:
    """Built again, byte for byte: what is kept by name may be kept for ever."""
    subprocess.run(
        [sys.executable, str(HERE / "build.py"), str(tmp_path)], check=True, capture_output=True, timeout=110
    )
    files = sorted(file.relative_to(built) for file in built.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file())
    assert [file for file in files if (built / file).read_bytes() != (tmp_path / file).read_bytes()] == []


# --- in real Chromium ---

long_way = pytest.mark.timeout(600)  # Python is fetched and started several times, by a browser on a busy machine


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A static host, of the plainest kind."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host(built: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def opened(page: Page, address: str, **said: object) -> None:
    """Open a page with a link that says this, and nothing is asked of another host."""
    host = re.match(r"http://[^/]+/", address)
    assert host is not None

    def look(request: Request) -> None:
        assert request.url.startswith((host[0], "data:", "blob:")), request.url

    page.on("request", look)
    page.set_default_timeout(LONG)
    fragment = "&".join(f"{name}={value}" for name, value in said.items())
    page.goto(f"{address}#{fragment}" if fragment else address)
    page.wait_for_selector("html[data-state=there]")


def ran(page: Page, guesses: tuple[float, ...] = ()) -> dict[str, Any]:
    """Guess or not, run, and return what came of it."""
    page.evaluate("delete document.documentElement.dataset.result")
    for number, guess in enumerate(guesses):
        page.fill(f"#guess-{number}", str(guess))
    if page.locator("#run").is_disabled():
        page.click("#skip")
    page.click("#run")
    page.wait_for_selector("html[data-result]", timeout=LONG)
    result: dict[str, Any] = json.loads(page.evaluate("document.documentElement.dataset.result"))
    return result


@long_way
@pytest.mark.parametrize("name", PAGES)
def test_a_page_counts_what_python_counts(name: str, host: str, tab: Tab) -> None:
    """Counts, bytes and delays of every situation are equal, to the last digit."""
    opened(tab.page, f"{host}/{name}.html")
    for said in SITUATIONS:
        fragment = "&".join(f"{key}={value}" for key, value in said.items())
        tab.page.evaluate("fragment => { location.hash = fragment }", fragment)
        used = {c.name for c in CONTROLS if set(c.models) & set(PAGES[name])}
        for key in used:
            usual = next(c.usual for c in CONTROLS if c.name == key)
            expect(tab.page.locator(f"#{key}")).to_have_value(f"{said.get(key, usual):g}")
        asked = {key: value for key, value in said.items() if key in used} | {"models": PAGES[name]}
        assert ran(tab.page) == json.loads(json.dumps(played(asked)))
    complaints = tab.page.locator("#said").inner_text()
    assert "virtual seconds took" in complaints


@long_way
def test_an_edited_server_is_what_runs_and_a_link_carries_it(host: str, tab: Tab, browser: Browser) -> None:
    """A mistake is shown with its line; a server without cursors loses what the law says, elsewhere too."""
    page = tab.page
    opened(page, f"{host}/long-polling.html", rate=3, delay=0.1, seconds=600, clients=1)
    source = page.locator('[id="server/long-polling"]')
    usual = source.input_value()
    assert usual == stage.server_source("long-polling")
    page.locator("summary", has_text="The server").click()
    source.fill(usual.replace("position = feed.position(after)", "position = feed.positon(after)"))
    page.click("#skip")
    page.click("#run")
    line = usual[: usual.index(BROKEN[0])].count("\n") + 1
    expect(page.locator("#said")).to_contain_text(f"server/long-polling, line {line}: AttributeError", timeout=LONG)
    selected = source.evaluate("text => text.value.slice(text.selectionStart, text.selectionEnd)")
    assert selected.strip() == "position = feed.positon(after)"
    source.fill(usual.replace(*BROKEN))
    result = ran(page)
    lost_as_the_law_says(result["models"]["long-polling"])
    expect(page).to_have_url(re.compile("server%2Flong-polling="))
    address = page.url
    page.click("#reset")
    assert source.input_value() == usual
    with browser.new_context() as elsewhere:
        other = elsewhere.new_page()
        other.goto(address)
        expect(other.locator("#said")).to_contain_text("brings its own source")
        assert ran(other) == result


@long_way
def test_a_run_can_be_stopped_and_the_page_never_freezes(host: str, tab: Tab) -> None:
    """While an hour of a crowd is computed, the timeline grows and the page answers; then it is stopped."""
    page = tab.page
    opened(page, f"{host}/four-models.html", seconds=3600, rate=10, clients=10, interval=0.5)
    page.click("#skip")
    page.click("#run")
    expect(page.locator("#lanes")).to_contain_text(re.compile(r"[1-9]\d* deliveries"), timeout=LONG)
    page.fill("#rate", "1")
    assert page.locator("#lanes svg *").count() <= 4 * 7  # a picture's cost does not grow with what is in it
    page.click("#stop")
    expect(page.locator("#said")).to_have_text("Stopped.", timeout=LONG)
    expect(page.locator("#run")).to_be_enabled()
    page.click("#reset")
    assert ran(page) == json.loads(json.dumps(played({})))


def squeezed(text: str) -> str:
    """A source, as a link carries it."""
    squeezer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return base64.urlsafe_b64encode(squeezer.compress(text.encode()) + squeezer.flush()).decode().rstrip("=")


BOMB = f"server%2Fsse={squeezed('#' * 10_000_000)}"


@pytest.mark.parametrize("link", ["rate=99", "wind=3", "server%2Fsse=%21%21", "rate=", "seed=NaN", BOMB])
def test_a_link_that_is_not_understood_says_so_and_is_as_usual(link: str, host: str, tab: Tab) -> None:
    """Nothing runs by itself, and what cannot be is left out."""
    tab.page.goto(f"{host}/sse.html#{link}")
    tab.page.wait_for_selector("html[data-state=there]")
    expect(tab.page.locator("#said")).to_contain_text("not understood")
    expect(tab.page.locator("#rate")).to_have_value("0.5")
    assert tab.page.evaluate("document.documentElement.dataset.result") is None


def test_without_javascript_a_page_says_what_it_needs(host: str, browser: Browser) -> None:
    """Nothing can be pressed that would do nothing, and one sentence says why."""
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{host}/sse.html")
        expect(page.locator("#said")).to_contain_text("needs JavaScript")
        expect(page.locator("#run")).to_be_disabled()


def test_what_changes_quickly_is_written_into_the_address_once(host: str, tab: Tab) -> None:
    """A slider that is drawn across its range changes the address now and then, and its end is what stays."""
    opened(tab.page, f"{host}/sse.html")
    written = tab.page.evaluate("""() => {
      window.written = 0;
      const write = history.replaceState.bind(history);
      history.replaceState = (...what) => { window.written += 1; write(...what); };
      const slider = document.getElementById("rate-slider");
      for (let rate = 1; rate <= 7; rate += 0.1) {
        slider.value = rate;
        slider.dispatchEvent(new Event("input"));
      }
      return new Promise((done) => setTimeout(() => done(window.written), 500));
    }""")
    assert written == 1
    expect(tab.page).to_have_url(re.compile("#rate=7$"))


@long_way
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_whoever_comes_by_phone_keyboard_or_ear_is_served(scheme: Any, host: str, browser: Browser) -> None:
    """No sideways scrolling, nothing for axe to find before and after a run, and no mouse is needed."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `site`")
    phone = {"width": 390, "height": 800}
    with browser.new_context(viewport=phone, color_scheme=scheme, reduced_motion="reduce") as context:  # type: ignore[arg-type]
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        opened(page, f"{host}/four-models.html", seconds=20)
        page.locator("#guess-0").focus()
        for _ in range(3):
            page.keyboard.type("2")
            page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "run"
        page.evaluate("window.focused = []; addEventListener('focusin', ({target}) => focused.push(target.id))")
        page.keyboard.press("Enter")
        page.wait_for_selector("html[data-result]", timeout=LONG)
        page.wait_for_function("focused.join() === 'stop,run'")
        spoken = page.locator("output, [role=status], [role=log], [role=alert], [aria-live]")
        assert [each.get_attribute("id") for each in spoken.all()] == ["said"]  # not what changes with each picture
        expect(page.locator("#result")).to_contain_text("guess 2")
        page.locator("#at").focus()
        page.keyboard.press("Home")
        expect(page.locator("#at-is")).to_have_text("0.0 s")
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert complaints == []


@long_way
def test_with_the_network_cut_a_phone_learns_that_sse_resumes(host: str, browser: Browser) -> None:
    """After one run no network is needed: guess, run, move the delay, cut the link: SSE resumes without loss."""
    with browser.new_context(viewport={"width": 390, "height": 800}) as context:
        page = context.new_page()
        opened(page, f"{host}/four-models.html")
        ran(page)
        context.set_offline(True)
        page.reload()
        page.wait_for_selector("html[data-state=there]")
        assert page.locator("#run").is_disabled()  # guess first
        calm = ran(page, (36, 2.5, 0.05))
        expect(page.locator("#result")).to_contain_text("guess 36")
        page.fill("#delay", "0.2")
        page.locator("#delay").blur()
        page.fill("#cut", "30")
        page.locator("#cut").blur()
        cut = ran(page)
        assert cut["models"]["sse"]["asked"] > calm["models"]["sse"]["asked"]
        assert cut["models"]["sse"]["missing"] == cut["models"]["sse"]["duplicated"] == 0
        assert cut["models"]["sse"]["median"] == pytest.approx(0.2)
        expect(page).to_have_url(re.compile("cut=30"))
        address = page.url
    with browser.new_context() as elsewhere:
        page = elsewhere.new_page()
        page.goto(address)
        page.wait_for_selector("html[data-state=there]")
        assert ran(page) == cut
