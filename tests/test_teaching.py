"""What a lecturer hands out: three editions, a repository without solutions, and a course that nbgrader marks."""

import asyncio
import contextlib
import copy
import csv
import functools
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lab.checks.verdict import is_stub
from lab.teaching import __main__ as command
from lab.teaching.client import Client
from lab.teaching.editions import EDITIONS, blank, solutions, write_students
from lab.teaching.lesson import EXERCISE, NOTEBOOKS, PREDICTION, Lesson, checked, lessons, only_imports, tags
from lab.teaching.minutes import reading
from lab.teaching.questions import BANK, questions

LESSONS = [pytest.param(lesson, id=lesson.path.stem) for lesson in lessons()]
NBGRADER = shutil.which("nbgrader", path=str(Path(sys.executable).parent))
FIRST = "00_start_here"
RIGHT = "    return len(set(published) - set(received)), len(received) - len(set(received))"
DELAYS = "    return [end - plan for plan, end in zip(planned, answered)]"
ANSWERS = {  # who hands in what in place of the two bodies, and the marks that each is worth
    "solutions": (None, None, 4),
    "stubs": ("    ...", "    ...", 0),
    "copies-a-cell": (RIGHT, DELAYS, 4),
    "first-only": (RIGHT, "    ...", 2),
    "counts-all": ("    return len(published) - len(received), 0", DELAYS, 2),
    "forgets-twice": ("    return len(set(published) - set(received)), 0", DELAYS, 2),
    "waits-its-turn": (RIGHT, "    return [end - begin for begin, end in zip(sent, answered)]", 2),
    "raises": ("    return undefined", DELAYS, 2),
    "not-python": ("    return (", DELAYS, 2),
    "hangs": (
        "    return 0, 0\n\nimport time\nwhile True:\n    time.sleep(1)",
        f"{DELAYS}\n\nawait asyncio.sleep(1000)",
        2,
    ),
}


def test_an_answer_that_no_event_tells_of_is_read() -> None:
    """A cell's answer is found when the event loop has heard nothing of it, long before its time is over."""

    def deaf(**_: Any) -> None:
        for channel in (client.kc.shell_channel, client.kc.iopub_channel):
            assert asyncio.get_running_loop().remove_reader(channel.socket.FD)

    notebook = new_notebook(cells=[new_code_cell("1 + 1")])
    client: Any = Client(notebook, timeout=90, kernel_name="python3", on_cell_execute=deaf)
    begin = time.monotonic()
    client.execute()
    assert time.monotonic() - begin < 60
    assert notebook.cells[0].outputs[0].data == {"text/plain": "2"}


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Execute all cells, in the order they stand."""
    resources = {"metadata": {"path": str(folder)}}
    Client(notebook, timeout=100, kernel_name="python3", resources=resources).execute()
    return notebook


@pytest.mark.parametrize("lesson", LESSONS)
def test_tags(lesson: Lesson) -> None:
    """Each cell with a stub to be checked, and no other, is tagged as an exercise; each guess is as a prediction."""
    for cell in lesson.notebook.cells:
        asked = checked(cell.source) if cell.cell_type == "code" else None
        stub = False
        if asked:
            names: dict[str, object] = {}
            with contextlib.suppress(NameError):
                exec(cell.source, names)  # the stub is defined, then its check is not known
            function = names[asked[1]]
            assert callable(function)
            stub = is_stub(function)
        assert (EXERCISE in tags(cell)) == stub
        if cell.source.startswith(("guess = {", "my_guess = {")):
            assert PREDICTION in tags(cell)


@pytest.mark.parametrize("lesson", LESSONS)
def test_blank(lesson: Lesson) -> None:
    """The blank edition has all of the prose, no output and no pointer to solutions."""
    notebook = blank(lesson)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert len(prose) == sum(cell.cell_type == "markdown" for cell in lesson.notebook.cells)
    assert not any("](solutions/" in text for text in prose)
    kept = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    assert kept
    for cell in kept:
        assert only_imports(cell) or {PREDICTION, EXERCISE} & set(tags(cell))
        assert not cell.outputs


def test_blank_runs(tmp_path: Path) -> None:
    """The blank edition runs to its end, and its stubs are told to be empty."""
    verdicts = [cell for cell in run(blank(lessons()[0]), tmp_path).cells if EXERCISE in tags(cell)]
    assert verdicts
    for cell in verdicts:
        assert "Not yet. This is still the empty stub" in cell.outputs[-1].data["text/plain"]


@pytest.mark.parametrize("lesson", LESSONS)
def test_solved(lesson: Lesson, tmp_path: Path) -> None:
    """In the solutions edition every exercise is answered, passes its check, and comes after what explains it."""
    notebook = solutions(lesson)
    first = next(number for number, cell in enumerate(notebook.cells) if EXERCISE in tags(cell))
    only = [cell for number, cell in enumerate(notebook.cells) if only_imports(cell) or number >= first]
    answered = [cell for cell in only if EXERCISE in tags(cell)]
    assert len(answered) == len(lesson.exercises)
    notebook.cells = [cell for cell in only if only_imports(cell) or cell in answered]
    for cell in run(notebook, tmp_path).cells:
        if EXERCISE in tags(cell):
            assert "assert verdict.ok" in cell.source
            assert cell.outputs[-1].data["text/plain"].startswith("✓ ")


def test_editions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command writes a folder and a zip for each edition, and writes over nobody's work."""
    assert command.main(["editions", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(EDITIONS)
    names = {lesson.path.name for lesson in lessons()}
    for edition in EDITIONS:
        assert {path.name for path in (tmp_path / edition).glob("*.ipynb")} == names
        with zipfile.ZipFile(tmp_path / f"{edition}.zip") as packed:
            assert {f"{edition}/{name}" for name in names} <= set(packed.namelist())
    for path in tmp_path.rglob("*.ipynb"):
        nbformat.validate(nbformat.read(path, as_version=4))
    with pytest.raises(SystemExit) as stopped:
        command.main(["editions", str(tmp_path)])
    assert stopped.value.code == 2
    assert "is there already" in capsys.readouterr().err


def test_students(tmp_path: Path) -> None:
    """The students' repository is one commit, has the notebooks and what they run, and neither solution nor test."""
    out = tmp_path / "students"
    assert write_students(out) > 100
    git = functools.partial(subprocess.run, cwd=out, check=True, capture_output=True, text=True)
    listed = git(["git", "ls-files"]).stdout.splitlines()
    assert {"README.md", "pyproject.toml", "servers/feed.py", f"notebooks/{FIRST}.ipynb"} <= set(listed)
    assert not [name for name in listed if name.startswith(("tests/", "notebooks/solutions/", "notebooks/teaching/"))]
    for path in out.glob("notebooks/*.ipynb"):
        assert "](solutions/" not in path.read_text(encoding="utf-8")
    for page in out.rglob("*.md"):
        linked = re.findall(r"\]\(([^)#\s:]+)[^)\s:]*\)", page.read_text(encoding="utf-8"))
        assert [name for name in linked if not (page.parent / name).exists()] == []
    assert len(git(["git", "log", "--oneline"]).stdout.splitlines()) == 1


def test_questions() -> None:
    """Each question has one right answer, says of three wrong ones what they come from, and is proved by a cell."""
    bank = questions()
    assert [question.number for question in bank] == list(range(1, len(bank) + 1))
    assert BANK.read_text(encoding="utf-8").count("\nProof: ") == len(bank)
    books = {lesson.path.name[:2]: lesson.notebook for lesson in lessons()}
    for question in bank:
        assert [answer.right for answer in question.answers].count(True) == 1
        assert len(question.answers) == 4
        sources = [cell.source for cell in books[question.notebook].cells if cell.cell_type == "code"]
        assert any(question.words in source for source in sources), question


def test_gift(tmp_path: Path) -> None:
    """The bank's file has each question once, with what GIFT would read as its own escaped."""
    path = tmp_path / "questions.gift"
    assert command.main(["questions", str(path)]) == 0
    blocks = [block for block in path.read_text(encoding="utf-8").split("\n\n") if block.startswith("::")]
    assert len(blocks) == len(questions())
    for block in blocks:
        title, text, answers = re.fullmatch(r"(?s)::([\d-]+)::\[markdown\](.+?) \{\n(.+)\n\}\n?", block).groups()  # type: ignore[union-attr]
        assert title
        lines = answers.split("\n")
        assert sorted(line[:2] for line in lines) == ["\t=", *3 * ["\t~"]]
        for part in (text, *(line[2:].replace("#", "", line[1] == "~") for line in lines)):
            assert not re.search(r"(?<!\\)[~=#{}:]", part)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course with its assignments."""
    if not NBGRADER:
        assert not os.environ.get("CI"), "nbgrader must be there on CI: pip install -e '.[grading]'"
        pytest.skip("nbgrader is not installed: pip install -e '.[grading]'")
    folder = tmp_path_factory.mktemp("grading") / "course"
    assert command.main(["course", str(folder)]) == 0
    return folder


def nbgrader(course: Path, *arguments: str) -> None:
    """Call nbgrader in the course's folder, with its own programs on the path."""
    assert NBGRADER
    path = f"{Path(NBGRADER).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [NBGRADER, *arguments], cwd=course, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]


def hand_in(course: Path, student: str, bodies: tuple[str | None, str | None]) -> None:
    """A submission: the released assignment with these bodies of its functions; None: the solution's."""
    folder = course / "submitted" / student / FIRST
    folder.mkdir(parents=True)
    notebook = nbformat.read(course / "release" / FIRST / f"{FIRST}.ipynb", as_version=4)
    solved = nbformat.read(course / "source" / FIRST / f"{FIRST}.ipynb", as_version=4)
    answers = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    right = [cell for cell in solved.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    for cell, body, solution in zip(answers, bodies, right, strict=True):
        head = next(line for line in cell.source.splitlines() if line.startswith("def "))
        cell.source = solution.source if body is None else f"{head.removesuffix(' ...')}\n{body}"
    if student == "copies-a-cell":
        notebook.cells.insert(1, copy.deepcopy(answers[0]))
        notebook.cells[1].id = "copy"
    nbformat.write(notebook, folder / f"{FIRST}.ipynb")


@pytest.mark.timeout(600)
def test_marks(course: Path) -> None:
    """Of all submissions each gets the marks it should: a mistake costs its own marks, and so does what hangs."""
    nbgrader(course, "generate_assignment", FIRST)
    released = (course / "release" / FIRST / f"{FIRST}.ipynb").read_text(encoding="utf-8")
    assert "SOLUTION" not in released
    for student, (*bodies, _) in ANSWERS.items():
        hand_in(course, student, (bodies[0], bodies[1]))
    nbgrader(course, "autograde", FIRST, "--ExecutePreprocessor.timeout=20")
    nbgrader(course, "export")
    with (course / "grades.csv").open(encoding="utf-8", newline="") as file:
        marks = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert marks == {student: marks for student, (*_, marks) in ANSWERS.items()}


GUIDE = NOTEBOOKS / "teaching" / "README.md"


def stored_minutes() -> dict[str, dict[str, tuple[float, float]]]:
    """What the page of the minutes says: by notebook and section, minutes to read it and seconds that its cells ran."""
    parts = re.split(r"(?m)^## ", (GUIDE.parent / "minutes.md").read_text(encoding="utf-8"))[1:]
    rows = {part.partition("\n")[0]: re.findall(r"(?m)^\| (.+) \| ([\d.]+) \| (\d+) \|$", part) for part in parts}
    return {name: {title: (float(read), float(ran)) for title, read, ran in own} for name, own in rows.items()}


@pytest.mark.parametrize("lesson", LESSONS)
def test_minutes(lesson: Lesson) -> None:
    """The minutes of the guide are those of the sections that are there; runs vary, and end within two minutes."""
    stored, now = stored_minutes()[lesson.path.stem], reading(lesson)
    anew = f"{lesson.path.stem}: make notebooks/teaching/minutes.md anew: python -m lab.teaching minutes OUT"
    assert [*stored] == [*now], anew
    for title, (read, _) in stored.items():
        assert read == pytest.approx(now[title], rel=0.2, abs=1), (title, anew)
    assert 0 < sum(ran for _, ran in stored.values()) < 120, anew


def test_minutes_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A section has the seconds that its cells ran; a notebook that raises is named, and nothing is written."""
    cells = [new_markdown_cell("## Quick\n\none two"), new_code_cell("1")]
    cells += [new_markdown_cell("three\n\n## Slow"), new_code_cell("import time\ntime.sleep(1)")]
    path, out = tmp_path / "09_one.ipynb", tmp_path / "minutes.md"
    nbformat.write(new_notebook(cells=cells), path)
    monkeypatch.setattr(command, "lessons", lambda: [Lesson(path)])
    assert command.main(["minutes", str(out)]) == 0
    quick, slow = re.findall(r"\| (?:Quick|Slow) \| ([\d.]+) \| (\d+) \|", out.read_text(encoding="utf-8"))
    assert (quick[0], slow[0]) == ("0.1", "0.1")
    assert int(slow[1]) >= 1
    out.unlink()
    nbformat.write(new_notebook(cells=[*cells, new_code_cell("1 / 0")]), path)
    with pytest.raises(SystemExit) as stopped:
        command.main(["minutes", str(out)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("09_one.ipynb: ZeroDivisionError: division by zero")
    assert not out.exists()


def plans(page: str) -> list[tuple[str, str]]:
    """The rows of a table: minutes or a number, and the plan."""
    return re.findall(r"(?m)^\| (\d+) \| (.+) \|$", page)


def test_guide_names_commands_that_are() -> None:
    """Each command of the guide is one: a word that it knows and a place to write to."""
    named = re.findall(r"python -m lab\.teaching (\S+) ([\w./-]+)", GUIDE.read_text(encoding="utf-8"))
    assert {word for word, _ in named} >= {"editions", "students", "course", "questions", "slides"}
    for words in named:
        command.parser().parse_args(words)


def test_plans() -> None:
    """The guide's plans and meetings name sections that are there, and fit their minutes with a tenth to spare."""
    stored = {name[:2]: own for name, own in stored_minutes().items()}
    took = {name: {title: read + ran / 60 for title, (read, ran) in own.items()} for name, own in stored.items()}
    guide = GUIDE.read_text(encoding="utf-8")
    by_minutes = dict[str, list[str]]()
    for page in re.split(r"(?m)^### (?=\d\d · )", guide)[1:]:
        name, planned = page[:2], list[str]()
        assert [minutes for minutes, _ in plans(page)] == ["50", "75", "100"]
        for minutes, plan in plans(page):
            planned += [title for title in plan.split("; ") if title != "the same"]
            by_minutes[f"{name} in {minutes}"] = [*planned]
            assert set(planned) <= set(took[name]), (name, set(planned) - set(took[name]))
            assert sum(took[name][title] for title in planned) <= 0.9 * int(minutes), (name, minutes)
    assert {name for name, _, _ in (plan.partition(" ") for plan in by_minutes)} == set(took)
    meetings = plans(guide[guide.index("## Syllabus") : guide.index("## Notebook by notebook")])
    assert [number for number, _ in meetings] == [*"1", *"12345", *"12345678"]
    for _, meeting in meetings:
        total = 0.0
        for part in meeting.split(" · "):
            titles = by_minutes[part] if " in " in part[:6] else part[4:].split("; ")
            total += sum(took[part[:2]][title] for title in titles)
        assert total <= 0.9 * 75, (meeting, total)
