"""What notebook 03 invites a reader to change, changed, and run from there to the section's end.

An experiment that comes out otherwise may say so in its table of claims; nothing else may fail.
"""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from lab.teaching.client import Client

PATH = Path(__file__).resolve().parent.parent / "notebooks" / "03_websockets.ipynb"
LIMIT = 480  # s for all of it: one whole run first, which takes about one minute alone

CHANGES = [  # from, to, what must then be shown
    ("65_535, 65_536]", "65_535, 65_536, 100_000]", "100,000 bytes"),
    ("h, t = 20, 20", "h, t = 5, 5", "a saw-tooth from 4.99 to 9.99 seconds, a tooth each 5 s"),
    ("h, t = 20, 20", "h, t = 15, 22.5", "a saw-tooth from 22.5 to 37.5 seconds, a tooth each 15 s"),
    ("payload=4096", "payload=400", "naive: the others wait 25 ms at most"),
    (
        "await asyncio.sleep(15)  # and reads",
        "await asyncio.sleep(150)  # and reads",
        "naive: the others never get all",
    ),
]


@pytest.fixture(scope="module")
def read_through() -> Iterator[Client]:
    """The notebook's kernel, once the notebook has run."""
    client = Client(nbformat.read(PATH, as_version=4), timeout=100, kernel_name="python3")
    client.resources = {"metadata": {"path": str(PATH.parent)}}
    with client.setup_kernel():
        for number, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, number)
        yield client


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize(("before", "after", "shown"), CHANGES, ids=[after for _, after, _ in CHANGES])
def test_a_change_shows_what_it_does(read_through: Client, before: str, after: str, shown: str) -> None:
    """A value that the text invites to change can be changed: all that follows runs, and shows the new one."""
    cells = nbformat.read(PATH, as_version=4).cells
    [begin] = [n for n, cell in enumerate(cells) if cell.cell_type == "code" and before in cell.source]
    headings = [n for n, cell in enumerate(cells) if cell.cell_type == "markdown" and "\n## " in f"\n{cell.source}"]
    changed = cells[begin : min(n for n in headings if n > begin)]
    changed[0].source = changed[0].source.replace(before, after)
    outputs = []
    for number, cell in enumerate(changed, begin):
        try:
            read_through.execute_cell(cell, number)
        except CellExecutionError as error:
            if not error.evalue.startswith("not so:"):
                raise
        outputs += cell.get("outputs", [])
    assert shown in " ".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs)
