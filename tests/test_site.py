"""The site: built once, offline, by its command; then its links, its texts, and its pages in Chromium, seen by axe."""

import functools
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from playwright.sync_api import Page

from tests.support_browser import Tab, browser, tab
from tests.test_words import defined

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "notebooks" / "site" / "build.py"
COURSE = [f"notebooks/{path.stem}.html" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
# Sphinx is started where nothing can be asked for over a network
OFFLINE = """
import runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError(f"the build asks the network: {arguments}")
sys.addaudithook(refuse)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
           "embed": "src", "object": "data"}  # fmt: skip
pytest.importorskip("sphinx", reason="needs the extra `site`")  # on CI a skipped test is a failed one
pytest.importorskip("axe_playwright_python", reason="needs the extra `site`")
BUILDING = pytest.mark.timeout(400)  # the first test waits for the build: half a minute, on a busy machine far more

__all__ = ["browser", "tab"]


@dataclass
class Seen(HTMLParser):
    """What of a page its links, its reader and its browser meet."""

    text: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    images: list[dict[str, str | None]] = field(default_factory=list)
    relations: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        have = dict(attributes)
        self.ids |= {value for name in ("id", "name") if (value := have.get(name))}
        if (link := have.get("href")) is not None:
            relation = have.get("rel") or ""
            self.relations.setdefault(relation, link)
            (
                self.loads if tag == "link" and relation not in ("next", "prev", "index", "search") else self.links
            ).append(link)
        if load := have.get(LOADING.get(tag, "")):
            self.loads.append(load)
        if tag == "img":
            self.images.append(have)
        self.loads += [part.split()[0] for part in (have.get("srcset") or "").split(",") if part.strip()]
        self.loads += re.findall(r"url\(([^)]+)\)", have.get("style") or "")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the command that CONTRIBUTING.md names, with the network refused."""
    out = tmp_path_factory.mktemp("site") / "out"
    before = files(BUILD.parent)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(BUILD), str(out)], capture_output=True, text=True, timeout=360, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files(BUILD.parent) == before
    return out


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, Seen]:
    """Every page by its path below the site."""
    found = sorted(site.rglob("*.html"))
    return {path.relative_to(site).as_posix(): Seen(path.read_text(encoding="utf-8")) for path in found}


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served: below a path, as GitHub Pages serves it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

        def translate_path(self, path: str) -> str:
            inside = path.startswith("/course/")
            return super().translate_path(path.removeprefix("/course") if inside else "/nothing-is-here")

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/course"
        server.shutdown()
        serving.join(10)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@BUILDING
def test_every_notebook_is_a_page_in_order(pages: dict[str, Seen]) -> None:
    """From the first page, "next" leads through the notebooks in their order, and "previous" leads back."""
    walked, here = ["index.html"], "index.html"
    for _ in COURSE:
        there = str(PurePosixPath(here).parent / pages[here].relations["next"])
        back = PurePosixPath(there).parent / pages[there].relations["prev"]
        assert str(back).replace("notebooks/../", "") == here
        walked.append(here := there)
    assert walked[1:] == COURSE


@BUILDING
def test_every_link_leads_somewhere(site: Path, pages: dict[str, Seen]) -> None:
    """Every link that stays on the site is relative, and finds its file and the place in it."""
    broken = []
    for name, page in pages.items():
        for link in page.links + page.loads:
            there = urlsplit(link)
            if there.scheme or link.startswith("data:"):
                continue
            path = (site / name).parent / unquote(there.path) if there.path else site / name
            path = path / "index.html" if path.is_dir() else path
            found = path.resolve().relative_to(site.resolve()).as_posix()
            place = "" if found.startswith("tab/") else unquote(there.fragment)  # there it is a situation
            if (
                link.startswith("/")
                or not path.is_file()
                or (place and found in pages and place not in pages[found].ids)
            ):
                broken.append((name, link))
    assert broken == []
    assert sum(len(page.links) for page in pages.values()) > 1000


@BUILDING
def test_every_image_has_a_text(pages: dict[str, Seen]) -> None:
    """Every image says in words what it shows, and a notebook's page has all the figures of the notebook."""
    for name, page in pages.items():
        for image in page.images:
            text = image.get("alt") or ""
            assert len(text.split()) > 3, (name, image)  # without one Sphinx gives the file's name
    for name in COURSE:
        cells = nbformat.read((ROOT / name).with_suffix(".ipynb"), as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        texts = [each.metadata["image/png"]["alt"] for each in outputs if "image/png" in each.get("data", {})]
        assert [image["alt"] for image in pages[name].images if (image["src"] or "").endswith(".png")] == texts


@BUILDING
def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Seen]) -> None:
    """No page and no style sheet names another host for something that a browser loads."""
    for name, page in pages.items():
        assert [load for load in page.loads if re.match(r"(https?:)?//", load)] == [], name
    sheets = sorted(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        loads = re.findall(r"@import[^;]*|url\([^)]*\)", sheet.read_text(encoding="utf-8"))
        assert [load for load in loads if "//" in load and "data:" not in load] == [], sheet


@BUILDING
def test_a_notebook_can_be_taken_along(site: Path, pages: dict[str, Seen]) -> None:
    """A notebook's page links the notebook itself, byte for byte, and Binder with this notebook open."""
    for name in COURSE:
        notebook = Path(name).with_suffix(".ipynb")
        assert (site / notebook).read_bytes() == (ROOT / notebook).read_bytes()
        assert notebook.name in pages[name].links
        assert any("mybinder.org" in link and link.endswith(f"lab/tree/{notebook}") for link in pages[name].links)


@BUILDING
def test_solutions_stand_apart(pages: dict[str, Seen]) -> None:
    """Each notebook links its solutions, and they have a page of their own that lists them; the first page has none."""
    for name in COURSE:
        assert f"solutions/{Path(name).name}" in pages[name].links
        assert f"notebooks/solutions/{Path(name).name}" in pages["solutions.html"].links
    article = pages["index.html"].text.partition("<article")[2].partition("</article")[0]
    assert "notebooks/solutions/" not in article


@BUILDING
def test_the_glossary_has_every_word(pages: dict[str, Seen]) -> None:
    """The glossary has each word of the notebooks' lists, and a link to every notebook that defines it."""
    article = pages["glossary.html"].text.partition("<article")[2]
    entries = re.findall(r'<dt id="[^"]+">(.*?)<a class="headerlink".*?<dd>(.*?)</dd>', article, re.DOTALL)
    found = {
        re.sub(r"<[^>]+>", "", word).lower().replace("&#39;", "'"): re.findall(r"notebooks/(\d\d)_", said)
        for word, said in entries
    }
    assert found == defined()


@BUILDING
def test_every_public_name_is_documented(pages: dict[str, Seen]) -> None:
    """What has a docstring, and a wing of the lab hands on or a module of the servers defines, is on its page."""
    for package in ("lab", "servers"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if module.name.endswith("__main__") or (package == "lab" and not module.ispkg):
                continue
            home = importlib.import_module(module.name)
            things = {name: getattr(home, name) for name in getattr(home, "__all__", dir(home)) if name[0] != "_"}
            names = {
                f"{module.name}.{name}" for name, thing in things.items()
                if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__doc__
                and (package == "lab" or thing.__module__ == module.name)
            }  # fmt: skip
            assert names <= pages[f"api/{module.name}.html"].ids, module.name


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    """No folder named, or one that holds something else than a site, is one line and no harm."""

    def complaint(*words: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, str(BUILD), *words], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    (tmp_path / "thesis.txt").write_text("the only copy")
    assert complaint() == (2, "usage: python notebooks/site/build.py OUT\n")
    assert complaint(str(tmp_path)) == (1, f"{tmp_path} is there, and is no site: name another folder\n")
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"


# --- in Chromium

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
VARIANTS: list[tuple[Any, Any]] = [(DESK, "light"), (PHONE, "dark"), (PHONE, "light"), (DESK, "dark")]
SAMPLE = [
    *COURSE,
    "index.html",
    "glossary.html",
    "CONTRIBUTING.html",
    "api/lab.bench.html",
    "_modules/index.html",
    "_modules/servers/sse.html",
    "search.html?q=cursor",
    "notebooks/solutions/04_server_sent_events.html",
    "notebooks/teaching/README.html",
]


# What of the text is beyond the window's edge, and in no box that can be moved: as wide a page would be, or is cut off.
BEYOND = """
[...document.querySelectorAll(".mobile-header, .content, .content *")].filter((element) => {
  const { right, width } = element.getBoundingClientRect();
  if (width <= 1 || right <= innerWidth + 1) return false;
  for (let box = element.parentElement; !box.matches(".content, body"); box = box.parentElement) {
    const moves = /auto|scroll/.test(getComputedStyle(box).overflowX);
    if (moves && box.getBoundingClientRect().right <= innerWidth + 1) return false;
  }
  return true;
}).map((element) => element.outerHTML.slice(0, 100)).slice(0, 3)
  .concat(document.documentElement.scrollWidth > innerWidth ? ["the page"] : [])
"""


def violations(page: Page) -> list[tuple[str, str]]:
    """What axe finds: the rule, and the first place.

    Contrast takes five sixths of its time, most of that for the letters of code, whose few colours are alike in every
    cell: it is asked last, when only the first ten are left.
    """
    axe = importlib.import_module("axe_playwright_python")
    page.evaluate((Path(str(axe.__file__)).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations'], rules: {'color-contrast': {enabled: false}}})")
    page.evaluate("[...document.querySelectorAll('article pre')].slice(10).forEach((code) => code.remove())")
    contrast = page.evaluate("axe.run({resultTypes: ['violations'], runOnly: ['color-contrast']})")
    violated = found["violations"] + contrast["violations"]
    assert contrast["passes"] + contrast["violations"]  # it was asked
    return [(each["id"], each["nodes"][0]["html"]) for each in violated]


@BUILDING
@pytest.mark.parametrize(("number", "path"), list(enumerate(SAMPLE)))
def test_a_page_as_it_is_read(address: str, tab: Tab, number: int, path: str) -> None:
    """At desk and phone, light and dark: no page is wider than its window, asks another host, or vexes axe."""
    asked: list[str] = []
    tab.context.on("request", lambda request: asked.append(request.url))
    for size, scheme in [*(v for v in VARIANTS if v != VARIANTS[number % 4]), VARIANTS[number % 4]]:
        tab.page.set_viewport_size(size)
        tab.page.emulate_media(color_scheme=scheme)
        if tab.page.url == "about:blank":
            tab.page.goto(f"{address}/{path}", wait_until="load")
        assert tab.page.evaluate(BEYOND) == []
        dark = tab.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((c) => c < 80)")
        assert dark == (scheme == "dark")
    assert violations(tab.page) == []  # in one of the four: it takes seconds
    assert [url for url in asked if not url.startswith((address, "data:"))] == []


@BUILDING
def test_the_search_finds_a_word(address: str, tab: Tab) -> None:
    """The site's own search, without a server's help, finds the notebook that a word stands in."""
    tab.page.goto(f"{address}/search.html?q=aliasing")
    result = tab.page.locator("#search-results li a", has_text="01 · Short polling").first
    result.wait_for()
    result.click()
    tab.page.wait_for_url("**/notebooks/01_short_polling.html**")


@BUILDING
def test_what_moves_sideways_can_be_reached(address: str, tab: Tab) -> None:
    """On a phone, a figure that is wider than the page can be moved by the keyboard."""
    tab.page.set_viewport_size({"width": 390, "height": 800})
    tab.page.goto(f"{address}/{COURSE[2]}")
    box = tab.page.locator(".cell_output:has(> img)").first
    box.focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.wait_for_function("(box) => box.scrollLeft > 0", arg=box.element_handle())


@BUILDING
def test_paper_has_all_of_a_page(address: str, tab: Tab) -> None:
    """Printed, no line of code ends at the sheet's edge, and no link to what is on the sheet lies over it."""
    tab.page.set_viewport_size({"width": 794, "height": 1123})
    tab.page.emulate_media(media="print")
    tab.page.goto(f"{address}/{COURSE[1]}")
    wide = "(all) => all.filter((code) => code.scrollWidth > code.clientWidth + 1).length"
    assert tab.page.locator("article pre").evaluate_all(wide) == 0
    assert tab.page.locator(".skip-to-content").is_hidden()
