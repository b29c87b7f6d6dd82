"""A notebook as who teaches sees it: its imports, predictions and exercises, and who has answered them.

notebook + its solutions ─▶ Lesson ─▶ exercises: (prose, stub, solution, function, check)
"""

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[2]
PREDICTION, EXERCISE = "prediction", "exercise"


@dataclass(frozen=True)
class Exercise:
    """A function to be written: the number of its cell, the prose before it, the empty stub, and the solution's code.

    `function` is its name, `check` the name of the check in `lab.checks`.
    """

    cell: int
    prose: str
    stub: str
    solution: str
    explanation: str
    function: str
    check: str

    @property
    def test(self) -> str:
        """What must hold of the function."""
        return f"checks.{self.check}({self.function})"


@dataclass(frozen=True)
class Lesson:
    """One notebook of the course, with its solutions."""

    path: Path

    @cached_property
    def notebook(self) -> NotebookNode:
        """As committed."""
        return read(self.path)

    @cached_property
    def solutions(self) -> NotebookNode:
        """The notebook that has its answers."""
        return read(self.path.parent / "solutions" / self.path.name)

    @cached_property
    def exercises(self) -> list[Exercise]:
        """In order. Raises ValueError for one without a solution."""
        cells = self.notebook.cells
        return [self._exercise(number) for number, cell in enumerate(cells) if EXERCISE in tags(cell)]

    def _exercise(self, number: int) -> Exercise:
        cell, before = self.notebook.cells[number], self.notebook.cells[number - 1]
        asked = checked(cell.source)
        if asked is None:
            raise ValueError(f"{self.path.name}, cell {number}: an exercise ends with checks.NAME(FUNCTION)")
        answers, helpers = self.solutions.cells, list[str]()
        for at, answer in enumerate(answers):
            if answer.cell_type != "code":
                continue
            if _made_of(answer.source, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef):
                helpers.append(answer.source)
            elif checked(answer.source) == asked:
                check, function = asked
                stub, code = (_before(f"checks.{check}(", each.source) for each in (cell, answer))
                solution = "\n\n\n".join([*helpers, code])
                explanation = answers[at - 1].source if answers[at - 1].cell_type == "markdown" else ""
                return Exercise(number, before.source, stub, solution, explanation, function, check)
        raise ValueError(f"{self.path.name}, cell {number}: no solution of {asked[1]} is checked")


def _before(call: str, source: str) -> str:
    """The lines before the one that has the call."""
    lines = source.splitlines()
    return "\n".join(lines[: next(n for n, line in enumerate(lines) if call in line)]).rstrip()


def read(path: Path) -> NotebookNode:
    """A notebook's content."""
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    return notebook


def lessons() -> list[Lesson]:
    """All notebooks that have solutions, in order."""
    return [Lesson(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def checked(source: str) -> tuple[str, str] | None:
    """(check, function) of a cell that defines a function and has it checked by `checks.CHECK(FUNCTION)`."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a magic
        return None
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in body:
        match node:
            case ast.Expr(value=call) | ast.Assign(value=call):
                match call:
                    case ast.Call(func=ast.Attribute(ast.Name("checks"), check), args=[ast.Name(function)]):
                        if function in defined:
                            return check, function
    return None


def only_imports(cell: NotebookNode) -> bool:
    """Whether a cell imports, and does nothing else."""
    return cell.cell_type == "code" and _made_of(cell.source, ast.Import, ast.ImportFrom)


def _made_of(source: str, *kinds: type[ast.stmt]) -> bool:
    try:
        body: list[Any] = ast.parse(source).body
    except SyntaxError:  # a magic
        return False
    return bool(body) and all(isinstance(node, kinds) for node in body)
