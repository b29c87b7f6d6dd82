"""A course for nbgrader: one assignment for each notebook, with its exercises, their checks and marks.

    write_course(DIR) ─▶ DIR/nbgrader_config.py, DIR/source/01_short_polling/01_short_polling.ipynb, …
    nbgrader generate_assignment NAME ─▶ release/…  ─▶ students ─▶ submitted/…  ─▶ nbgrader autograde NAME

An exercise is a cell with the empty stub, behind which the solution stands between nbgrader's marks, and a locked cell
that holds its check to be passed (https://nbgrader.readthedocs.io, "Creating and grading assignments").
"""

import ast
import copy
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import nbformat
from nbformat import NotebookNode

from lab.teaching.editions import store, without_output
from lab.teaching.lesson import Exercise, Lesson, lessons, only_imports

MARKS = 2  # for each exercise
NUMBERED = re.compile(r"(?m)^\*\*\d+\.\*\*")  # where its text begins
CONFIGURATION = '''
    """The course's settings: what `nbgrader` reads when it is called in this folder."""

    from nbgrader import preprocessors


    class Copies(preprocessors.DeduplicateIds):
        """A copied cell is no cell of nbgrader's; with empty metadata, as it leaves them, it marks nobody any more."""

        def preprocess_cell(self, cell, resources, cell_index):
            cell, resources = super().preprocess_cell(cell, resources, cell_index)
            if cell.metadata.get("nbgrader") == {}:
                del cell.metadata["nbgrader"]
            return cell, resources


    c = get_config()
    c.CourseDirectory.course_id = "push-vs-pull"
    c.ClearSolutions.code_stub = {"python": ""}  # the stub itself stands before the solution
    c.ClearSolutions.enforce_metadata = True
    c.ExecutePreprocessor.timeout = 60  # seconds for a cell: one that hangs loses its own marks
    c.ExecutePreprocessor.interrupt_on_timeout = True  # and the next one is run
    c.ExecutePreprocessor.raise_on_iopub_timeout = False  # also after one that prints for ever
    others = preprocessors.OverwriteKernelspec, preprocessors.OverwriteCells, preprocessors.CheckCellMetadata
    c.Autograde.sanitize_preprocessors = [preprocessors.ClearOutput, Copies, *others]
'''


def write_course(out: Path) -> list[str]:
    """Write the course into the new folder `out`; return its assignments' names. Raises FileExistsError."""
    out.mkdir(parents=True)
    (out / "nbgrader_config.py").write_text(dedent(CONFIGURATION).lstrip(), encoding="utf-8")
    names = []
    for lesson in lessons():
        if lesson.exercises:
            name = lesson.path.stem
            store(assignment(lesson), out / "source" / name / f"{name}.ipynb")
            names.append(name)
    return names


def assignment(lesson: Lesson) -> NotebookNode:
    """The exercises of a notebook that a check can judge, as nbgrader's source."""
    title = lesson.notebook.cells[0].source.splitlines()[0]
    head = f"{title}: exercises\n\nTo the notebook of the same name."
    cells = [nbformat.v4.new_markdown_cell(head)]
    cells += [nbformat.v4.new_code_cell(source) for source in _imports(lesson)]
    begin = 0
    for exercise in lesson.exercises:
        shown = lesson.notebook.cells[begin : exercise.cell]
        text = next(number for number in reversed(range(len(shown))) if NUMBERED.search(shown[number].source))
        for cell in shown[text:]:  # an exercise's text, and what stands between that and its stub
            at = NUMBERED.search(cell.source)
            copied = without_output(copy.deepcopy(cell))
            copied.source = cell.source[at.start() :] if at else cell.source
            cells.append(copied)
        begin = exercise.cell + 1
        cells += [_answer(exercise), _test(exercise)]
    notebook: NotebookNode = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = dict(lesson.notebook.metadata.kernelspec)
    return notebook


def _imports(lesson: Lesson) -> list[str]:
    """The import cells of the notebook, and those of its solutions that bring something else."""
    sources = [cell.source for each in (lesson.notebook, lesson.solutions) for cell in each.cells if only_imports(cell)]
    known = set[str]()
    kept = []
    for source in sources:
        names = {alias.asname or alias.name for node in ast.parse(source).body for alias in _aliases(node)}
        if not names <= known:
            kept.append(source)
        known |= names
    return kept


def _aliases(node: ast.stmt) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


def _answer(exercise: Exercise) -> NotebookNode:
    source = f"{exercise.stub}\n\n\n### BEGIN SOLUTION\n{exercise.solution}\n### END SOLUTION"
    return _cell(source, exercise.function, solution=True)


def _test(exercise: Exercise) -> NotebookNode:
    source = f"verdict = {exercise.test}\nassert verdict.ok, verdict"
    return _cell(source, f"{exercise.function}_check", grade=True, locked=True, points=MARKS)


def _cell(source: str, name: str, **nbgrader: Any) -> NotebookNode:
    cell: NotebookNode = nbformat.v4.new_code_cell(source)
    fixed = {"schema_version": 3, "grade_id": name, "task": False, "cell_type": "code"}
    cell.metadata.nbgrader = fixed | {"solution": False, "grade": False, "locked": False} | nbgrader
    return cell
