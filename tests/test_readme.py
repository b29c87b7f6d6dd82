"""Tests of README.md and its neighbours: the commands, the links, the table of notebooks, the public address."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "servers/*.md", "notebooks/**/*.md", "notebooks/**/*.ipynb")
    for path in ROOT.glob(pattern)
    if "checkpoint" not in path.as_posix()
)
TEACHING, COLAB = "notebooks/teaching/README.md", "notebooks/README.md"
TWO_SCREENS = 100  # lines
README = (ROOT / "README.md").read_text(encoding="utf-8")
MINUTES = r"\d+(?: \+ \d+)?"  # for reading, and for the exercises
ROW = re.compile(
    rf"^\| \[(?P<title>[^]]+)\]\((?P<path>notebooks/\S+\.ipynb)\) \| (?P<question>.+\?) \| (?P<minutes>{MINUTES}) \|$",
    re.M,
)


def test_two_commands_on_the_first_screen() -> None:
    """The first screen has two commands, one to open the course and one to test it, and each makes its environment."""
    first_screen = README.partition("\n## ")[0]
    assert re.findall(r"^```sh\n(.*?)\n```$", first_screen, re.M | re.S) == [
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/jupyter lab notebooks/00_start_here.ipynb",
        'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/pytest',
    ]


def test_the_picture_says_what_a_run_says(tmp_path: Path) -> None:
    """Each word and number in the picture on top is that of a run of today's servers and clients."""
    runpy.run_path(str(ROOT / ".ci" / "draw-four-models"))["draw"]().save(tmp_path / "now.svg")
    stored, now = (
        re.findall(r"<!-- (.*?) -->|<dc:description>(.*?)</dc:description>", path.read_text(encoding="utf-8"))
        for path in (ROOT / "notebooks" / "images" / "four-models.svg", tmp_path / "now.svg")
    )
    assert stored == now


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every link to a file of the repository finds it, and the heading in it."""
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(ROOT / page))
    for link in links:
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def text_of(path: Path) -> str:
    """A page's prose, without code."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """What a link can name in a page: its headings, as Jupyter (notebooks) or GitHub (other pages) has them."""
    found = re.findall(r"^#+ (.+)$", text_of(path), re.M)
    if path.suffix == ".ipynb":
        return {heading.replace(" ", "-") for heading in found} | set(re.findall(r'\bid="([^"]+)"', text_of(path)))
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in found}


def test_it_ends_within_two_screens() -> None:
    """The README is for readers of the course, and short; what an operator needs stands in servers/README.md."""
    assert len(README.splitlines()) <= TWO_SCREENS


def test_its_example_runs() -> None:
    """The README's Python prints the one update that it publishes."""
    [example] = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout.removeprefix("data: "))["path"] == "reports/q3.csv"


def test_table_lists_every_notebook() -> None:
    """The table has a row for every notebook of the course, in order."""
    paths = sorted(ROOT.glob("notebooks/*.ipynb"))
    assert paths
    assert [row["path"] for row in ROW.finditer(README)] == [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize("row", [row.groupdict() for row in ROW.finditer(README)], ids=lambda row: row["path"])
def test_table_agrees_with_the_notebook(row: dict[str, str]) -> None:
    """A notebook opens with the title, and with the minutes, that the table gives."""
    first = nbformat.read(ROOT / row["path"], as_version=4).cells[0].source
    assert first.startswith(f"# {row['title']}")
    reading, _, exercises = row["minutes"].partition(" + ")
    told = f"{reading} to read, run and predict, {exercises} for the exercises" if exercises else reading
    assert f"**Minutes:** {told} ·" in first


def test_the_way_through_agrees_with_the_table() -> None:
    """Notebook 00 tells the minutes of every notebook that it lists as the README does."""
    minutes = {Path(row["path"]).name: row["minutes"] for row in ROW.finditer(README)}
    start = nbformat.read(ROOT / "notebooks/00_start_here.ipynb", as_version=4)
    [way] = [cell.source for cell in start.cells if "## The way through" in cell.source]
    told = re.findall(r"^\| (?:\[.*\]\((\S+\.ipynb)\)|00 Start here) \| .+\? \| (.+) \|$", way, re.M)
    assert {name or "00_start_here.ipynb": number for name, number in told} == {
        name: minutes[name] for name, _ in told if name
    } | {"00_start_here.ipynb": minutes["00_start_here.ipynb"]}


def address_in(folder: Path) -> str:
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"]).removeprefix("https://github.com/")


def addresses_of_badges(folder: Path) -> list[str]:
    badges = r"https://(?:mybinder\.org/v2/gh|github\.com)/([^/\s]+/[^/\s]+)/"
    return re.findall(badges, (folder / "README.md").read_text(encoding="utf-8"))


def set_address(folder: Path, address: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / ".ci" / "set-address"), address]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("README.md", "pyproject.toml", ".ci/set-address", TEACHING, COLAB):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_badges_bear_the_address() -> None:
    """The badges link to the address in pyproject.toml, and a line says so as long as that is a placeholder."""
    assert addresses_of_badges(ROOT) == [address_in(ROOT)] * 3
    assert ("placeholder `OWNER/REPOSITORY`" in README) == (address_in(ROOT) == "OWNER/REPOSITORY")


def test_set_address(copy: Path) -> None:
    """One command writes the address wherever it stands and takes away the remark on the placeholder, ever again."""
    for address in ("someone/push-vs-pull", "someone-else/course.2"):
        assert set_address(copy, address).returncode == 0
        assert address_in(copy) == address
        assert addresses_of_badges(copy) == [address] * 3
        hub = (copy / TEACHING).read_text(encoding="utf-8")
        assert f"git-pull?repo=https://github.com/{address}&branch=main" in hub
        assert "OWNER/REPOSITORY" not in hub
        assert f"!git clone -q https://github.com/{address} course" in (copy / COLAB).read_text(encoding="utf-8")
        readme = (copy / "README.md").read_text(encoding="utf-8")
        assert "placeholder" not in readme
        assert "https://{}.github.io/{}/tab/four-models.html".format(*address.split("/")) in readme


@pytest.mark.parametrize("address", ["", "course", "https://github.com/someone/course", "some one/course", "a/b/c"])
def test_set_address_refuses(address: str, copy: Path) -> None:
    """What is no OWNER/NAME is refused with the usage, and nothing is written."""
    done = set_address(copy, address)
    assert (done.returncode, done.stderr) == (2, "usage: .ci/set-address OWNER/NAME\n")
    assert (copy / "README.md").read_text(encoding="utf-8") == README
