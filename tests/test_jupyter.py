"""The course as a reader has it: real notebooks, run in Chromium, in JupyterLab and in Notebook 7 below a base URL."""

import re
import shutil
import symtable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from playwright.sync_api import expect

from lab.teaching.editions import without_output
from tests.support_browser import Tab, browser, tab, until
from tests.support_jupyter import FRONTS, PANEL, Jupyter, jupyter
from tests.support_notebooks import code_cells
from tests.test_demo_page import is_connected, shown

__all__ = ["browser", "tab"]  # fixtures
pytestmark = pytest.mark.timeout(300)

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PATIENCE = 150.0  # s, for a whole notebook on a busy machine; alone it takes twenty
FIGURES_SHOWN = """([index, texts]) => {
  const { node } = PANEL.content.widgets[index];
  const pictures = [...node.querySelectorAll("img")];
  const said = [...node.querySelectorAll("p, img")].map((each) => each.alt ?? each.textContent);
  return pictures.length >= texts.length && pictures.every((picture) => picture.naturalWidth > 0)
    && texts.every((text) => said.includes(text) || said.includes(`Figure: ${text}`));
}""".replace("PANEL", PANEL)


@pytest.fixture(scope="module", params=FRONTS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    """A front end, and in its folder the notebooks without what they have shown."""
    with jupyter(request.param, tmp_path_factory.mktemp("jupyter")) as running:
        shutil.copytree(NOTEBOOKS / "images", running.folder / "images")
        for name in ("00_start_here.ipynb", "01_short_polling.ipynb"):
            notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
            for cell in notebook.cells:
                without_output(cell)
            nbformat.write(notebook, running.folder / name)
        yield running


@pytest.fixture
def complaints(tab: Tab) -> Iterator[list[str]]:
    """What pages of the course say in the console, and nothing that Jupyter says of itself; it stays empty."""
    said: list[str] = []
    tab.context.on("console", lambda message: said.append(f"{message.location['url']}: {message.text}"))
    tab.context.on("weberror", lambda error: said.append(f"{error.error.stack}"))
    tab.allow("")
    yield said
    assert [text for text in said if "/proxy/" in text] == []


def texts(outputs: list[dict[str, Any]]) -> list[str]:
    """The alternative texts of a cell's figures, as the kernel sent them."""
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    return [output["metadata"]["image/png"]["alt"] for output in shown]


def needed(notebook: NotebookNode, last: int) -> list[int]:
    """The code cells that bring about what cell `last` uses, and that one."""
    wanted, chosen = set[str](), list[int]()
    for number, cell in reversed(code_cells(notebook)):
        top = symtable.symtable(cell.source, str(number), "exec")
        bound = {each.get_name() for each in top.get_symbols() if each.is_assigned() or each.is_imported()}
        if number == last or (number < last and bound & wanted):
            wanted |= globals_used(top)
            chosen.append(number)
    return chosen[::-1]


def globals_used(table: symtable.SymbolTable) -> set[str]:
    """What a cell, or a function in it, takes from the notebook."""
    top = table.get_type() == "module"
    own = {each.get_name() for each in table.get_symbols() if each.is_global() or (top and each.is_referenced())}
    return own.union(*map(globals_used, table.get_children()))


def test_notebook_runs_and_shows_its_figures_and_the_live_demo(
    running: Jupyter, tab: Tab, complaints: list[str]
) -> None:
    """Run All goes through notebook 00; every figure is there with its text; the demo's streams come by the proxy."""
    running.open(tab, "00_start_here.ipynb")
    cells = running.run_all(tab, PATIENCE)
    outputs = {number: cell["outputs"] for number, cell in enumerate(cells) if cell}
    wrong = [o for own in outputs.values() for o in own if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert wrong == []
    figures = {number: texts(own) for number, own in outputs.items() if texts(own)}
    assert len(figures) >= 4
    for number, said in figures.items():
        tab.page.evaluate(f"{PANEL}.content.activeCellIndex = {number}; {PANEL}.content.scrollToItem({number})")
        tab.page.wait_for_function(FIGURES_SHOWN, arg=[number, said])
    element = tab.page.locator("iframe[title='Four models, live']")
    expect(element).to_be_visible()
    frame = element.element_handle().content_frame()
    assert frame is not None
    assert re.search(r"/user/x/proxy/\d+/$", frame.url)
    is_connected(frame)
    before = shown(frame, "received")
    until(lambda: all(now > then for now, then in zip(shown(frame, "received"), before, strict=True)))


def test_slider_moves_by_keyboard(running: Jupyter, tab: Tab, complaints: list[str]) -> None:
    """A key on the slider of notebook 01 makes one more run in the kernel, and another figure of it.

    Not an arrow key: those Notebook 7 takes for itself (7.6).
    """
    name = "01_short_polling.ipynb"
    notebook = nbformat.read(running.folder / name, as_version=4)
    slider = next(number for number, cell in code_cells(notebook) if re.search(r"\binteract(ive)?\(", cell.source))
    running.open(tab, name)
    for cell in needed(notebook, slider):
        running.run(tab, cell)
    readout, figure = tab.page.locator(".widget-readout").first, tab.page.locator(".widget-output img")
    expect(figure).to_have_count(1)
    number, picture = readout.inner_text(), str(figure.get_attribute("src"))
    tab.page.locator(".widget-slider [role=slider]").first.press("PageUp")
    expect(readout).not_to_have_text(number)
    expect(figure).not_to_have_attribute("src", picture)
    expect(tab.page.locator(".widget-output p")).to_have_text(re.compile("^Figure: .*"))
