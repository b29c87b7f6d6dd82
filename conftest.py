"""What pytest does in this repository beyond its settings in pyproject.toml.

Notebooks are tests: nbval runs every code cell of a notebook in one kernel, top to bottom, and fails the cells that
raise. Some failures raise nothing in a cell, and nbval lets them pass; here they fail too:

    anything on stderr             a warning, a misspelt magic, an exception in a thread, callback or collected task
    a lost exception               a task failed and nobody awaited it, seen when the notebook ends
    `raises-exception`             a cell with this tag that raises nothing
    a dead kernel                  noticed within a second, not after the cell's timeout

After a cell each of its claims is turned round, and must fail. With CI set in the environment a notebook that has run
runs again in its kernel: whole, in random cells, and with each change that its text invites to (but for a solution,
where nobody goes on working); and a skipped test is a failed test.
"""

import importlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from queue import Empty
from typing import Any

import hypothesis
import nbval.kernel
import nbval.plugin
import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell, IPyNbFile

from tests.support_notebooks import AGAIN, false_claims

ON_CI = bool(os.environ.get("CI"))
STARTS = 3  # of a kernel, until it lives
WORKERS = 2  # more would disturb the notebooks' measurements

# A machine that stands still for a moment is no fault of an example's, nor of what makes examples.
PATIENT = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("patient", hypothesis.settings(), **PATIENT)  # all else as it is, on CI or not
hypothesis.settings.load_profile("patient")

LOST_EXCEPTIONS = """
import asyncio, gc, sys
gc.collect()  # a task in a reference cycle reports its own loss
for thing in gc.get_objects():
    if issubclass(type(thing), asyncio.Future) and thing.done() and getattr(thing, "_log_traceback", False):
        print("nobody awaited", thing, file=sys.stderr)
"""


class WatchedKernel(nbval.plugin.RunningKernel):  # type: ignore[misc]  # nbval has no types
    """nbval's kernel, which keeps all that reaches stderr and notices its own death.

    nbval itself drops the messages of earlier cells, which is where the output of their background tasks goes.
    """

    def __init__(self, kernel_name: str, cwd: str | None = None, startup_timeout: float = 60) -> None:
        importlib.import_module("matplotlib.font_manager")  # on a machine for the first time it talks on stderr

        self._stderr: list[str] = []
        options = {"kernel_name": kernel_name, "cwd": cwd, "stderr": subprocess.DEVNULL}
        for left in reversed(range(STARTS)):
            try:
                self.km, self.kc = nbval.kernel.start_new_kernel(startup_timeout, **options)
                break
            except RuntimeError:  # a port that was free when it was chosen is taken before the kernel listens on it
                if not left:
                    raise
        self._ensure_iopub_up()

    def get_message(self, stream: str, timeout: float | None = None) -> dict[str, Any]:
        """Return the next message of `stream`; raise Empty after `timeout` seconds, RuntimeError if the kernel died."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while True:
            try:
                patience = min(1.0, max(0.0, deadline - time.monotonic()))
                message: dict[str, Any] = super().get_message(stream, timeout=patience)
            except Empty:
                if not self.is_alive():
                    raise RuntimeError("the kernel died") from None
                if time.monotonic() >= deadline:
                    raise
            else:
                if message["msg_type"] == "stream" and message["content"]["name"] == "stderr":
                    self._stderr.append(message["content"]["text"])
                return message

    def take_stderr(self) -> str:
        """Return what came on stderr since the last call."""
        text = "".join(self._stderr)
        self._stderr.clear()
        return text

    def lost_exceptions(self) -> str:
        """Return a line for every asyncio task that failed with nobody to see it, and what else is left on stderr."""
        request = self.execute_cell_input(LOST_EXCEPTIONS, allow_stdin=False)
        self.await_reply(request, timeout=30)
        self.await_idle(request, timeout=30)
        return self.take_stderr()


nbval.plugin.RunningKernel = WatchedKernel


class Again(IPyNbCell):  # type: ignore[misc]  # nbval has no types
    """A cell that has run and runs once more in the same kernel, perhaps with another text."""

    @classmethod
    def of(cls, first: IPyNbCell, words: str, source: str | None = None) -> Any:
        """What runs as `first` did, under a name that tells when; `source` is its text now."""
        cell = NotebookNode(first.cell)
        cell.source = cell.source if source is None else source
        options = {"cell_num": first.cell_num, "cell": cell, "options": first.options.copy()}
        return cls.from_parent(first.parent, name=f"{first.name}, {words}", **options)

    def reportinfo(self) -> tuple[Any, Any, str]:
        path, line, description = super().reportinfo()
        return path, line, f"{description}{self.name.removeprefix(f'Cell {self.cell_num}')}"


class FalseClaim(Again):
    """A cell with one of its claims turned round, which must be refused."""

    def runtest(self) -> None:
        self.options["check_exception"] = True
        super().runtest()
        if [output.ename for output in self.test_outputs if output.output_type == "error"] != ["AssertionError"]:
            self.raise_cell_error("This claim, turned round, is let pass")


def first_run(cells: list[IPyNbCell]) -> Iterator[IPyNbCell]:
    """Every cell, followed by itself with each of its claims turned round."""
    for cell in cells:
        yield cell
        for number, source in enumerate(false_claims(cell.cell.source), start=1):
            yield FalseClaim.of(cell, f"claim {number} turned round", source)


def second_run(cells: list[IPyNbCell]) -> Iterator[Again]:
    """Every cell once more; then some at random, and each change that the text invites to, with all that follows it."""
    name = cells[0].path.stem
    number, changes = AGAIN.get(name, (0, []))
    for first in cells:
        yield Again.of(first, "second run")
    for turn, first in enumerate(random.Random(name).sample(cells, number), start=1):
        yield Again.of(first, f"again at random ({turn})")
    sources = [first.cell.source for first in cells]
    for old, new in changes:
        [begin] = [place for place, source in enumerate(sources) if old in source]
        sources[begin] = sources[begin].replace(old, new)
        for first, source in zip(cells[begin:], sources[begin:], strict=True):
            yield Again.of(first, f"with {new}", source)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--notebook-runs",
        type=int,
        choices=(1, 2),
        default=2 if ON_CI else 1,
        help="how often each notebook runs in its kernel (default: 1, on CI 2)",
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Share the whole suite between workers; what is named on the command line runs in this process."""
    return WORKERS if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    once, items[:] = items.copy(), []
    for parent, group in groupby(once, key=attrgetter("parent")):
        cells: list[Any] = list(group)
        if isinstance(parent, IPyNbFile):
            items += first_run(cells)
            if config.getoption("--notebook-runs") == 2 and parent.path.parent.name != "solutions":
                items += second_run(cells)
        else:
            items += cells


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    if not isinstance(item, IPyNbCell):
        return (yield)
    try:
        result = yield
    finally:
        stderr = item.parent.kernel.take_stderr()
    if stderr:
        item.raise_cell_error(f"While this cell ran, the kernel wrote to stderr:\n{stderr}")
    if item.options["check_exception"] and not any(output.output_type == "error" for output in item.test_outputs):
        item.raise_cell_error("The cell is tagged raises-exception and raised nothing")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    lost = ""
    if isinstance(item, IPyNbCell) and (nextitem is None or nextitem.parent is not item.parent):
        kernel = item.parent.kernel
        if kernel is not None and kernel.is_alive():
            lost = kernel.lost_exceptions()
    result = yield
    if lost:
        pytest.fail(f"The notebook ended with exceptions that nobody saw:\n{lost}", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    return _nothing_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    return _nothing_skipped((yield))


def _nothing_skipped(report: Any) -> Any:
    if ON_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped on CI: {report.longrepr}"
    return report
