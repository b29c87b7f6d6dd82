"""The talks, in Chromium: nothing runs over an edge, no request leaves the page, and every figure is there."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lab.teaching.lesson import Lesson, lessons
from lab.teaching.slides import write_slides
from tests.support_browser import Tab, browser, tab

__all__ = ["browser", "tab"]

LESSONS = {lesson.path.stem: lesson for lesson in lessons()}
FIRST = "01_short_polling"
# of all slides, whose names are over an edge, and whose letters are smaller than 14 pixels at 1280x720
OVER = """() => slides.flatMap((slide, i) => {
    slide.hidden = false;
    const edge = slide.getBoundingClientRect();
    const over = [...slide.querySelectorAll("*")].some(each => {
        const box = each.getBoundingClientRect();
        return box.width && (box.right > edge.right + 1 || box.bottom > edge.bottom + 1);
    });
    const small = [...slide.querySelectorAll("p, li, td, th, pre")].some(each =>
        parseFloat(getComputedStyle(each).fontSize) * (each.closest(".block").currentCSSZoom || 1) < 14);
    slide.hidden = i !== at;
    return over || small || !slide.querySelector(".block") ? [i + 1] : [];
})"""


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("slides") / "talks"
    assert [path.stem for path in write_slides(out)] == sorted(LESSONS)
    return out


def opened(tab: Tab, talks: Path, name: str) -> Page:
    tab.page.set_viewport_size({"width": 1280, "height": 720})
    tab.page.goto((talks / f"{name}.html").as_uri())
    return tab.page


@pytest.mark.parametrize("name", LESSONS)
def test_a_talk_fits(tab: Tab, talks: Path, name: str) -> None:
    """No slide is empty or runs over an edge, none has tiny letters, and the page asks for nothing but itself."""
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    page = opened(tab, talks, name)
    assert page.evaluate(OVER) == []
    assert [url for url in asked if not url.startswith("data:")] == [(talks / f"{name}.html").as_uri()]


@pytest.mark.parametrize("name", LESSONS)
def test_every_figure_is_on_a_slide(tab: Tab, talks: Path, name: str) -> None:
    """A notebook's figures are all there, in order, each with its alternative text."""
    outputs = [output for cell in LESSONS[name].notebook.cells for output in cell.get("outputs", [])]
    figures = [o.metadata["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    page = opened(tab, talks, name)
    assert figures
    assert page.evaluate("() => [...document.images].filter(i => i.className == 'figure').map(i => i.alt)") == figures
    assert page.evaluate("() => [...document.images].every(image => image.naturalWidth > 0)")


def test_keys_move(tab: Tab, talks: Path) -> None:
    """Arrows, Page Down, Home and End show one slide at a time, and stop at either end; N shows the prose."""
    page = opened(tab, talks, FIRST)
    last = page.evaluate("slides.length")
    where = []
    for key in ("ArrowRight", "PageDown", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft"):
        page.keyboard.press(key)
        where.append(int(page.locator("footer:visible").inner_text().split("·")[-1].split("/")[0]))
    assert where == [2, 3, 2, last, last, 1, 1]
    assert not page.locator("#notes").is_visible()
    page.keyboard.press("n")
    assert "How late is the news" in page.locator("#notes").inner_text()


def test_a_finger_moves(tab: Tab, talks: Path) -> None:
    """A swipe to the left shows the next slide, one to the right the one before, and a tap moves nothing."""
    page = opened(tab, talks, FIRST)
    where = []
    for begin, end in ((300, 100), (300, 100), (100, 300), (100, 110)):
        for kind, x in (("touchstart", begin), ("touchend", end)):
            page.evaluate(
                """([kind, clientX]) => {
                    const touch = new Touch({identifier: 1, target: document.body, clientX});
                    document.body.dispatchEvent(new TouchEvent(kind, {changedTouches: [touch], bubbles: true}));
                }""",
                [kind, x],
            )
        where.append(page.evaluate("location.hash"))
    assert where == ["#2", "#3", "#2", "#2"]


def test_a_slide_has_an_address(tab: Tab, talks: Path) -> None:
    """The number after # is the slide that is shown, and a small window shows it whole."""
    page = opened(tab, talks, FIRST)
    page.set_viewport_size({"width": 640, "height": 360})
    page.wait_for_function("innerWidth === 640 && innerHeight === 360")
    page.goto((talks / f"{FIRST}.html").as_uri() + "#5")
    footer = page.locator("footer:visible")
    expect(footer).to_have_text(re.compile(r"·\s+5 / \d+$"))
    box = footer.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 640
    assert box["y"] + box["height"] <= 360


def test_nothing_leads_into_the_repository(talks: Path) -> None:
    """A talk is one file: whatever it names is in it, or on the web."""
    for path in talks.glob("*.html"):
        named = re.findall(r'(?:href|src)="([^"]*)"', path.read_text(encoding="utf-8"))
        assert {re.split(r"[/,;:]", name)[0] for name in named} <= {"https", "data"}, path.name


def test_what_is_left_out(talks: Path) -> None:
    """Exercises are told whole, their stubs, their solutions' address and the further reading are not shown."""
    text = (talks / f"{FIRST}.html").read_text(encoding="utf-8")
    lesson: Lesson = LESSONS[FIRST]
    assert "Ninety-five per cent of the updates must be no older" in text
    assert "Which is the longest interval that will do?" in text
    assert lesson.exercises
    assert not [each.stub for each in lesson.exercises if each.stub in text]
    assert "solutions/" not in text
    assert "Further reading" not in text
