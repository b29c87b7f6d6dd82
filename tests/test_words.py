"""One word, one concept: what the notebooks' lists of words define more than once."""

import re
from collections import defaultdict
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
# (word, the notebooks that define it): why more than one does
AGAIN = {
    ("back-off", "01", "07"): "while nothing comes; between attempts: longer and longer pauses, both",
    ("black hole", "03", "07"): "the same",
    ("conditional request", "01", "06"): "the same, of a list of updates and of a file",
    ("context takeover", "03", "08"): "the same, of a WebSocket and of a stream",
    ("epoch", "00", "06"): "the same, and what follows from it",
    ("etag", "01", "06"): "the same, of a list of updates and of a file",
    ("for nothing", "00", "01"): "the same",
    ("half-open", "03", "07"): "the same",
    ("heartbeat", "03", "04"): "a sign of life: a ping that is answered, or a comment",
    ("idle limit", "04", "07"): "the same",
    ("inline", "05", "06"): "the same",
    ("interval", "01", "05"): "two: between polls, and of confidence; the word that each field has",
    ("jitter", "01", "02"): "the same",
    ("origin", "03", "04"): "the same",
    ("reset", "04", "06"): "defined in 04 only; 06 uses it in the words on an epoch",
    ("standard error", "01", "02"): "the same",
}


def defined() -> dict[str, list[str]]:
    """Of every word: the numbers of the notebooks whose list has it, one for each time that it is there."""
    found = defaultdict[str, list[str]](list)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        prose = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
        lists = re.findall(r"^## Words\n+(.*?)(?=^## |\Z)", "\n\n".join(prose), re.M | re.S)
        assert len(lists) == 1, f"{path.name} has {len(lists)} lists of words"
        for word in re.findall(r"\*\*(.+?)\*\*", lists[0]):
            found[word.strip("`").lower()].append(path.name[:2])
    return found


def test_a_word_is_defined_once() -> None:
    """A word that two notebooks define is listed here with the reason; nothing is defined twice in one."""
    again = {(word, *where) for word, where in defined().items() if len(where) > 1}
    assert again == AGAIN.keys()


def test_every_line_defines() -> None:
    """Each line of a list of words begins with a word, and explains or relates it."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            words = re.search(r"^## Words\n+(.*?)(?=^## |\Z)", cell.source, re.M | re.S)
            for line in words[1].strip().splitlines() if words else []:
                assert re.match(r"- \*\*[^*]+\*\*.*\S{2}", line), (path.name, line)
