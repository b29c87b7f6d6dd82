"""How long a section takes: at a reader's speed, before the runs.

A section is what stands under a heading of the second level. 200 words of prose a minute is a slow reader's speed for
technical text (M. Brysbaert, *How many words do we read per minute?*, Journal of Memory and Language 109, 2019: 238 for
non-fiction); 15 lines of code a minute is what trying lessons aloud took. All runs of a notebook together take less
than a minute and a half.
"""

from lab.teaching.lesson import Lesson

WORDS, LINES = 200, 15  # a minute


def sections(lesson: Lesson) -> dict[str, float]:
    """The minutes of each section by its title, in order; what stands before the first is left out."""
    minutes = dict[str, float]()
    title = ""
    for cell in lesson.notebook.cells:
        if cell.cell_type == "code":
            minutes[title] = minutes.get(title, 0) + len(cell.source.split("\n")) / LINES
            continue
        for line in cell.source.splitlines():
            if line.startswith("## "):
                title = line.removeprefix("## ").strip()
            minutes[title] = minutes.get(title, 0) + len(line.split()) / WORDS
    minutes.pop("", None)
    return minutes
