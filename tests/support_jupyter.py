"""A real Jupyter in Chromium: its server is a process of its own, below a base URL as a JupyterHub has it.

    with jupyter("lab", HOME) as running:     JupyterLab, or "notebook": Notebook 7
        running.open(tab, "a.ipynb")          of running.folder, with a kernel of its own
        running.run(tab, 0)                   a cell; running.run_all(tab): the menu's Run All Cells

Configuration, data and working folder are in HOME; when it ends, no process of it is left.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_notebook

from tests.support_browser import PATIENCE, Tab, until

BASE, TOKEN = "/user/x/", "secret"
START = 60.0  # s, for a server or a kernel: alone they take two
FRONTS = {  # the module that is run, its settings' class, the path of an opened notebook
    "lab": ("jupyterlab", "LabApp", "lab/tree"),
    "notebook": ("notebook", "JupyterNotebookApp", "notebooks"),
}
PANEL = "jupyterapp.shell.currentWidget"  # there by expose_app_in_browser
SESSION = "globalThis.jupyterapp?.shell?.currentWidget?.sessionContext"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
CELLS = f"""Array.from({PANEL}.content.model.cells, (cell) => cell.type === "code"
    ? {{ count: cell.executionCount, outputs: cell.outputs.toJSON(), state: cell.executionState }} : null)"""
HAVE_RUN = """() => {
  const cells = CELLS.filter(Boolean);
  return cells.some(({ outputs }) => outputs.some((output) => output.output_type === "error"))
    || cells.every(({ count, state }) => count && state !== "running");
}""".replace("CELLS", CELLS)


@dataclass
class Jupyter:
    """A running front end and its working folder."""

    front: str
    url: str
    folder: Path

    def open_new(self, tab: Tab, *cells: str) -> None:
        """Open a new notebook with these cells."""
        notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata={"kernelspec": KERNEL})
        nbformat.write(notebook, self.folder / "notebook.ipynb")
        self.open(tab, "notebook.ipynb")

    def open(self, tab: Tab, name: str) -> None:
        """Open a notebook, and wait until its kernel is connected."""
        reset = "&reset" if self.front == "lab" else ""
        tab.page.goto(f"{self.url}{FRONTS[self.front][2]}/{name}?token={TOKEN}{reset}")
        connected = f"{SESSION}?.session?.kernel?.connectionStatus === 'connected'"
        tab.page.wait_for_function(connected, timeout=1000 * START)
        tab.page.evaluate(f"{SESSION}.ready")

    def run(self, tab: Tab, cell: int) -> None:
        """Run one cell to its end."""
        tab.page.evaluate(f"{PANEL}.content.activeCellIndex = {cell}")
        tab.page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")

    def run_all(self, tab: Tab, patience: float) -> list[dict[str, Any] | None]:
        """Have the menu run all cells; return, once they have run or one has raised, what each code cell holds."""
        tab.page.get_by_role("menuitem", name="Run", exact=True).click()
        tab.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        tab.page.wait_for_function(HAVE_RUN, timeout=1000 * patience)
        held: list[dict[str, Any] | None] = tab.page.evaluate(CELLS)
        return held


@contextmanager
def jupyter(front: str, home: Path) -> Iterator[Jupyter]:
    """Start a front end of FRONTS; end it, and see that neither it nor a kernel is left."""
    module, settings, _ = FRONTS[front]
    folder, config = home / "work", home / "config"
    (config / "labconfig").mkdir(parents=True)
    folder.mkdir()
    asks_for_news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (config / "labconfig" / "page_config.json").write_text(json.dumps(asks_for_news))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"base_url": BASE, "port": port, "root_dir": folder, "open_browser": False, "allow_root": True}
    command = [sys.executable, "-m", module, f"--IdentityProvider.token={TOKEN}"]
    command += [f"--{settings}.expose_app_in_browser=True"]
    command += [f"--ServerApp.{name}={value}" for name, value in options.items()]
    private = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    private["IPYTHONDIR"] = str(home / "ipython")
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | private, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}{BASE}"

        def answers() -> bool:
            assert process.poll() is None, (home / "log").read_text()
            try:
                return httpx.get(f"{url}api", trust_env=False).is_success
            except httpx.TransportError:
                return False

        until(answers, START)
        yield Jupyter(front, url, folder)
    finally:
        server = [psutil.Process(process.pid)] if process.poll() is None else []
        started = [each for own in server for each in (own, *own.children(recursive=True))]
        process.terminate()
        left = gone(started)
        process.wait(PATIENCE)
    assert left == []


def gone(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Wait until they have ended; kill and return those that have not."""
    _, left = psutil.wait_procs(processes, timeout=START)
    for process in left:
        process.kill()
    return left
