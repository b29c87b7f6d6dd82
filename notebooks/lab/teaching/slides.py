"""A talk of each notebook: one HTML page that needs nothing else, made from the outputs as committed.

    notebook ─▶ cells ─▶ (section, block), … ─▶ page ─▶ the browser lays the blocks out, slide after slide
                          heading   first sentences, lists, tables, figures, short code; the full prose is in the notes

The page is our own, not reveal.js: blocks are measured where they are shown, so that none runs over a slide's edge, and
its Content-Security-Policy lets no request leave it.
"""

import ast
import base64
import functools
import html
import mimetypes
import re
import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from nbconvert.filters.markdown import markdown2html
from nbformat import NotebookNode

from lab.teaching.editions import POINTER
from lab.teaching.lesson import EXERCISE, Lesson, lessons, tags

LEFT_OUT = {"Further reading", "Notes"}  # to be read, not to be heard
LONGEST = 22  # lines of code on a slide
SHORT = 45  # characters of a sentence that does not stand alone
WHOLE = {"Exercises"}  # a task is not told by its first sentence
PART = re.compile(r"(?<=[.?!|`)*>])\n{2,}(?!    )|(?<=\w)\n{2,}(?!    |[-*+>] )")  # what leads to a list stays with it
PARAGRAPH = re.compile(r"(?![-*+] |[>|#<`]|\d+\. |!\[)")  # how none of Markdown's other blocks begins
SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z*`\[(\"])")
SOURCE = re.compile(r"```\w+\n(.*)\n```", re.DOTALL)  # what `lab.figures.Source` shows
PAGE = files("lab.teaching").joinpath("slides.html")


class Block(NamedTuple):
    """What a slide shows: the section it stands in, its HTML, and what the lecturer may say (HTML, or nothing)."""

    section: str
    shown: str
    notes: str = ""


def write_slides(out: Path) -> list[Path]:
    """Write a talk of each notebook into the new folder `out`; return the pages. Raises FileExistsError."""
    out.mkdir(parents=True)
    pages = []
    for lesson in lessons():
        pages.append(out / f"{lesson.path.stem}.html")
        pages[-1].write_text(page(lesson), encoding="utf-8")
    return pages


def page(lesson: Lesson) -> str:
    """The talk of one notebook."""
    title, shown = lesson.notebook.cells[0].source.splitlines()[0].removeprefix("# "), ""
    section = None
    for block in blocks(lesson):
        if block.section != section:
            section = block.section
            shown += f"</section>\n<section><h2>{inline(section, lesson)}</h2>\n"
        notes = f"<aside>{block.notes}</aside>" if block.notes else ""
        shown += f"<div class=block>{block.shown}{notes}</div>\n"
    frame = PAGE.read_text(encoding="utf-8").replace("TITLE", html.escape(title))
    return frame.replace("SECTIONS", shown.removeprefix("</section>\n") + "</section>")


def blocks(lesson: Lesson) -> Iterator[Block]:
    """What a talk shows, in order."""
    section = ""
    for cell in lesson.notebook.cells:
        if cell.cell_type == "markdown":
            for part in PART.split(POINTER.sub("", cell.source).strip()):
                if heading := re.match(r"#{1,3} (.*)", part):
                    section = heading[1]
                    part = part[heading.end() :].strip()
                if part and section not in LEFT_OUT:
                    yield _prose(section, part, lesson)
        elif section not in LEFT_OUT:
            if _is_shown(cell):
                yield Block(section, f"<pre>{html.escape(cell.source)}</pre>")
            yield from (Block(section, shown) for output in cell.outputs for shown in _outputs(output))


def _prose(section: str, part: str, lesson: Lesson) -> Block:
    """A paragraph by its first sentence, with the next after a very short one, and whole in the notes.

    Lists, tables and quotations are shown as they are.
    """
    whole = rendered(part, lesson)
    first, *more = SENTENCE.split(part)
    while more and len(first) < SHORT:
        first += f" {more.pop(0)}"
    if section in WHOLE or not PARAGRAPH.match(part) or "\n\n" in part or not more:
        return Block(section, whole)
    return Block(section, rendered(first, lesson), whole)


def _is_shown(cell: NotebookNode) -> bool:
    """Whether code is worth a slide: a function or class that can be read there, and is not an exercise's stub."""
    if EXERCISE in tags(cell) or cell.source.count("\n") >= LONGEST:
        return False
    try:
        body = ast.parse(cell.source).body
    except SyntaxError:  # a magic
        return False
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in body)


def _outputs(output: NotebookNode) -> Iterator[str]:
    """The figures, tables and sources of an output; a bare value says nothing without its code."""
    data = output.get("data", {})
    if png := data.get("image/png"):
        alt = html.escape(output.metadata["image/png"]["alt"])
        yield f'<img class=figure src="data:image/png;base64,{png.strip()}" alt="{alt}">'
    elif re.match(r"\s*<table", shown := data.get("text/html", "")):
        yield shown
    elif (found := SOURCE.fullmatch(data.get("text/markdown", "").strip())) and found[1].count("\n") < LONGEST:
        yield f"<pre>{html.escape(found[1])}</pre>"


def inline(text: str, lesson: Lesson) -> str:
    """A heading's HTML."""
    return rendered(text, lesson).strip().removeprefix("<p>").removesuffix("</p>")


def rendered(text: str, lesson: Lesson) -> str:
    """Markdown as HTML, with its pictures inside and without the links that lead to the repository's files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made: str = markdown2html(text)
    made = re.sub(r'<a class="anchor-link".*?</a>', "", made)
    made = re.sub(r'<a href="(?!https://)[^"]*"[^>]*>(.*?)</a>', r"\1", made, flags=re.DOTALL)
    return re.sub(r'(?<=src=")(?!data:)[^"]+', functools.partial(_inside, lesson), made)


def _inside(lesson: Lesson, found: re.Match[str]) -> str:
    """The picture with this address as a data URL."""
    path = lesson.path.parent / found[0]
    kind = mimetypes.guess_type(path)[0]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
