"""Editions of the notebooks from one source, and the repository that students get.

reader      as committed, with its outputs
blank       the prose and the predictions; the rest of the code is typed in class
solutions   every exercise filled in, after the prose that explains it
"""

import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lab.teaching.lesson import EXERCISE, NOTEBOOKS, PREDICTION, Lesson, lessons, only_imports, tags

ROOT = NOTEBOOKS.parent
POINTER = re.compile(r"(?m)^.*\]\(solutions/.*\n?")  # the line that says where the solutions are
LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s:]+)[^)\s:]*\)")  # to a file
KEPT_BACK = ("notebooks/solutions/", "notebooks/teaching/", "tests/", ".ci/", ".github/")


def reader(lesson: Lesson) -> NotebookNode:
    """The notebook as it is read."""
    return copy.deepcopy(lesson.notebook)


def blank(lesson: Lesson) -> NotebookNode:
    """The notebook for live coding: imports, predictions and exercises stay, all other code is to be typed."""
    notebook = without_solutions(reader(lesson))
    for cell in notebook.cells:
        without_output(cell)
        kept = only_imports(cell) or {PREDICTION, EXERCISE} & set(tags(cell))
        if cell.cell_type == "code" and not kept:
            cell.source = ""
    return notebook


def solutions(lesson: Lesson) -> NotebookNode:
    """The notebook with every exercise's solution in the place of its stub, not executed."""
    notebook = reader(lesson)
    imports = [copy.deepcopy(cell) for cell in lesson.solutions.cells if only_imports(cell)]
    for exercise in reversed(lesson.exercises):
        cell = notebook.cells[exercise.cell]
        cell.source = f"{exercise.solution}\n\n\nverdict = {exercise.test}\nassert verdict.ok, verdict\nverdict"
        if exercise.explanation:
            notebook.cells.insert(exercise.cell, nbformat.v4.new_markdown_cell(exercise.explanation))
    if lesson.exercises:
        first = lesson.exercises[0].cell
        notebook.cells[first:first] = imports
    for cell in notebook.cells:
        without_output(cell)
    return notebook


def without_output(cell: NotebookNode) -> NotebookNode:
    """The cell itself, as if it had not been run."""
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
    return cell


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """The notebook without the line that says where its solutions are."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = POINTER.sub("", cell.source)
    return notebook


def without_dead_links(page: Path) -> str:
    """The page's text, with the words alone of a link to what is not there."""
    text = page.read_text(encoding="utf-8")
    return LINK.sub(lambda link: link[0] if (page.parent / link[2]).exists() else link[1], text)


EDITIONS: dict[str, Callable[[Lesson], NotebookNode]] = {"reader": reader, "blank": blank, "solutions": solutions}


def write_edition(name: str, out: Path) -> Path:
    """Write the edition's notebooks into the folder `out`/`name`, and that folder as a zip beside it; return the zip.

    With the edition `solutions` go the notebooks that answer the questions on paper. Raises FileExistsError for a
    folder that is there, so that nobody's work is written over.
    """
    folder = out / name
    folder.mkdir(parents=True)
    for lesson in lessons():
        store(EDITIONS[name](lesson), folder / lesson.path.name)
        if name == "solutions":
            store(copy.deepcopy(lesson.solutions), folder / "solutions" / lesson.path.name)
    return Path(shutil.make_archive(str(folder), "zip", out, name))


def write_students(out: Path) -> int:
    """Write the repository without solutions, tests and what is for lecturers into the new folder `out`.

    It is a Git repository of one commit. What `lab.checks` compares with stays: it is code, and can be read. Returns
    how many files there are. Raises FileExistsError for a folder that is there, CalledProcessError outside of a clone.
    """
    listed = _git(ROOT, "ls-files", "-z").split("\0")
    names = [name for name in listed if name and not name.startswith(KEPT_BACK)]
    out.mkdir(parents=True)
    for name in names:
        copied = out / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copied, follow_symlinks=False)
    for lesson in lessons():
        store(without_solutions(reader(lesson)), out / "notebooks" / lesson.path.name)
    for page in out.rglob("*.md"):
        page.write_text(without_dead_links(page), encoding="utf-8")
    _git(out, "init", "-q", "-b", "main")
    _git(out, "add", "-A")
    _git(out, "-c", "user.name=course", "-c", "user.email=course@example.org", "commit", "-qm", "The course")
    return len(names)


def store(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whose cells have ids, and each a different one."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{cell.get('id', 'cell')[:32]}-{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout
