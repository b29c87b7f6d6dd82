"""How long a section takes: to be read, and until its cells have run.

    page(lessons()) ─▶ runs every notebook ─▶ notebooks/teaching/minutes.md, which the plans of the guide are held to

A section is what stands under a heading of the second level. 200 words of prose a minute is a slow reader's speed for
technical text (M. Brysbaert, *How many words do we read per minute?*, Journal of Memory and Language 109, 2019: 238 for
non-fiction); 15 lines of code a minute is what trying lessons aloud took. The runs are measured, once.
"""

import copy
import subprocess
from collections.abc import Iterable, Iterator
from datetime import datetime

from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from lab.teaching.client import Client
from lab.teaching.lesson import Lesson

WORDS, LINES = 200, 15  # a minute
CELL_TIMEOUT = 100  # s, as in the tests
HEAD = """\
# Minutes

Made by `.venv/bin/python -m lab.teaching minutes OUT`, which runs all notebooks: minutes to read a section, at 200
words or 15 lines of code a minute, and the seconds that its cells ran.
"""


def page(lessons: Iterable[Lesson]) -> Iterator[str]:
    """The page of the minutes, a part for each notebook; it takes as long as the notebooks. Raises as `runs` does."""
    yield HEAD
    for lesson in lessons:
        ran = runs(lesson)
        rows = "".join(f"| {title} | {took:.1f} | {ran[title]:.0f} |\n" for title, took in reading(lesson).items())
        yield f"\n## {lesson.path.stem}\n\n| section | reading (min) | runs (s) |\n|---|---|---|\n{rows}"


def reading(lesson: Lesson) -> dict[str, float]:
    """The minutes of each section by its title, in order; what stands before the first is left out."""
    minutes = dict[str, float]()
    for title, part in _by_section(lesson.notebook):
        took = len(part.split()) / WORDS if isinstance(part, str) else len(part.source.split("\n")) / LINES
        minutes[title] = minutes.get(title, 0) + took
    return minutes


def runs(lesson: Lesson) -> dict[str, float]:
    """The seconds that the cells of each section run, on this machine. Raises RuntimeError for a cell that raises."""
    notebook = copy.deepcopy(lesson.notebook)
    where = {"metadata": {"path": str(lesson.path.parent)}}
    client = Client(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources=where)
    try:
        client.execute(stderr=subprocess.DEVNULL)  # the kernel's own words, not those of cells
    except CellExecutionError as error:
        raise RuntimeError(f"{lesson.path}: {error.ename}: {error.evalue}") from error
    seconds = dict[str, float]()
    for title, part in _by_section(notebook):
        seconds.setdefault(title, 0)
        if not isinstance(part, str) and (times := part.metadata.get("execution")):
            begin, end = (datetime.fromisoformat(times[key]) for key in ("iopub.execute_input", "shell.execute_reply"))
            seconds[title] += (end - begin).total_seconds()
    return seconds


def _by_section(notebook: NotebookNode) -> Iterator[tuple[str, str | NotebookNode]]:
    """Each line of prose, and each cell of code, with the title that it stands under."""
    title = ""
    for cell in notebook.cells:
        for part in [cell] if cell.cell_type == "code" else cell.source.splitlines():
            if isinstance(part, str) and part.startswith("## "):
                title = part.removeprefix("## ").strip()
            if title:
                yield title, part
