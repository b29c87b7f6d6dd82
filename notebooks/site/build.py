"""The course as a site: one folder of pages, which asks no other host for anything.

    README, manuals ─┐
    notebooks ───────┼─▶ gather: a temporary tree, laid out as the repository ─▶ Sphinx (conf.py) ─▶ OUT
    servers, lab ────┘   (links, alternative texts, words, API)                  warnings are errors

    python notebooks/site/build.py OUT

Notebooks are shown with their stored outputs and never run. Nothing is written into the repository, but for what
tab/build.py fetches, once, into its folder `build`: but for that no network is needed. Needs the extra `site`, and npm.
"""

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import nbformat

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ADDRESS: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
MARK = ".buildinfo"  # Sphinx leaves it in a site: what has it may be replaced

OWNER, NAME = ADDRESS.rsplit("/", 2)[1:]
PUBLIC = f"https://{OWNER}.github.io/{NAME}/"  # where the site will be: what notebooks link to, wherever they are read
TAB = [  # the course's servers in a browser tab; tab/build.py makes these pages
    ("Four models on one feed", "tab/four-models.html"),
    ("Short polling", "tab/short-polling.html"),
    ("Long polling", "tab/long-polling.html"),
    ("WebSocket", "tab/websocket.html"),
    ("Server-Sent Events", "tab/sse.html"),
]


def build_tab(out: Path) -> None:
    """Write the pages of TAB below `out`/tab. Raises SiteError."""
    done = subprocess.run([sys.executable, str(HERE / "tab" / "build.py"), str(out / "tab")], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SiteError("the pages for a browser tab could not be built: see above")


COURSE = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks" / "solutions").glob("*.ipynb"))
TEACHING = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks" / "teaching").glob("*.md"))
MANUALS = ["README.md", "notebooks/README.md", "servers/README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"]
OWN = "notebooks/site/"
PAGES = {*COURSE, *SOLUTIONS, *TEACHING, *MANUALS, *(f"{OWN}{name}.md" for name in ("index", "glossary", "solutions"))}
LINK = re.compile(r"(?<=\]\()([^)\s#]*)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
IMAGES = {".png", ".svg"}


class SiteError(Exception):
    """What prevents the build, in one line."""


def build(out: Path) -> None:
    """Build the site in `out`, which is made, or replaced if a site is there.

    Raises SiteError if something else is in `out`, or if Sphinx warns of anything.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        raise SiteError(f"{out} is there, and is no site: name another folder")
    try:
        from sphinx.application import Sphinx
        from sphinx.errors import SphinxError
        from sphinx.util.console import nocolor
    except ModuleNotFoundError as missing:
        raise SiteError(f"{missing}; the extra `site` has it: pip install -e '.[site]'") from missing
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "source"), Path(folder, "site")
        gather(source)
        nocolor()
        try:
            sphinx = Sphinx(source, HERE, made, Path(folder, "doctrees"), "html", status=None, warningiserror=True,
                            parallel=os.cpu_count() or 1)  # fmt: skip
            sphinx.build()
        except SphinxError as failed:
            raise SiteError(f"{failed}") from failed
        if sphinx.statuscode:
            raise SiteError("Sphinx warned: see above")
        for path in COURSE + SOLUTIONS:  # as they are in the repository, to be downloaded
            shutil.copy(ROOT / path, made / path)
        for page in made.rglob("*.html"):
            write(page, mended(page.read_text(encoding="utf-8"), page.parent, made))
        build_tab(made)
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(made, out)


def gather(source: Path) -> None:
    """Lay out in `source` what Sphinx reads, each page where it is in the repository, so that links stay relative."""
    for path in COURSE + SOLUTIONS:
        write(source / path, notebook(path))
    for path in TEACHING + MANUALS:
        write(source / path, linked((ROOT / path).read_text(encoding="utf-8"), path))
    shutil.copytree(ROOT / "notebooks" / "images", source / "notebooks" / "images")
    write(source / "index.md", first_page())
    write(source / "solutions.md", own("solutions") + toctree(SOLUTIONS))
    write(source / "glossary.md", glossary())
    for path, text in api().items():
        write(source / path, text)


def mended(page: str, folder: Path, site: Path) -> str:
    """A page of Sphinx's, in `folder` of the `site`, with what the theme and the notebooks leave out.

    For those who hear it: roles, names and levels. For a slow line: how large a figure will be, and that it can wait.
    """
    page = page.replace(f'href="{PUBLIC}', f'href="{os.path.relpath(site, folder)}/')  # to itself, wherever it is
    page = page.replace('role="heading">', 'role="heading" aria-level="2">')
    page = page.replace('<aside class="sidebar-drawer"', '<aside class="sidebar-drawer" aria-label="All pages"')
    page = page.replace('<aside class="toc-drawer', '<aside aria-label="On this page" class="toc-drawer')
    page = page.replace('<div id="search-results">', '<h1>Search</h1>\n<div id="search-results">')
    sources = r"(?<=<h1>All modules for which code is available</h1>\n)(.*?)(?=\n\s*</article>)"
    page = re.sub(
        sources, lambda lists: f"<ul>{re.sub('</?ul>', '', lists[1])}</ul>", page, flags=re.DOTALL
    )  # one list
    page = re.sub(r"<th\b[^>]*>(?:<p></p>)?</th>", "<td></td>", page)  # the corner of a table heads nothing

    def sized(image: re.Match[str]) -> str:
        head = (folder / image[1]).read_bytes()[:24]
        width, height = (int.from_bytes(head[at : at + 4]) for at in (16, 20))
        return f'{image[0]} width="{width}" height="{height}" loading="lazy"'

    return re.sub(r'<img alt="[^"]*" src="([^":]+\.png)"', sized, page)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def toctree(pages: list[str], caption: str = "", *, hidden: bool = False) -> str:
    """MyST's list of pages that come next."""
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


# --- prose


def linked(text: str, path: str) -> str:
    """The page's text with every link to what is no page of the site led to the repository's address instead.

    Badges, which other hosts draw, are left out.
    """
    text = re.sub(r"^\[!\[.*\n|^The badges carry the placeholder.*\n", "", text, flags=re.MULTILINE)
    parts = CODE.split(text)  # every other part is code
    parts[::2] = [LINK.sub(lambda link: target(link[1], link[2] or "", path), part) for part in parts[::2]]
    return "".join(parts)


def target(name: str, fragment: str, path: str) -> str:
    """Where a link of the page `path` leads on the site."""
    if "://" in name:
        return name + fragment
    found = os.path.normpath(PurePosixPath(path).parent / name) if name else path
    if found.endswith(".ipynb"):
        fragment = fragment.lower()  # Jupyter keeps a heading's capitals in its anchor, Sphinx does not
    if found in PAGES or PurePosixPath(found).suffix in IMAGES:
        return (os.path.relpath(place(found), PurePosixPath(place(path)).parent) if name else "") + fragment
    there = ROOT / found
    if not there.exists():
        raise SiteError(f"{path}: {name} is not in the repository")
    return f"{ADDRESS}/{'tree' if there.is_dir() else 'blob'}/HEAD/{quote(found)}{fragment}"


def place(path: str) -> str:
    """Where a page of the repository is on the site: at its own place, or at the top if it was written for the site."""
    return path.removeprefix(OWN)


def own(name: str) -> str:
    """The text of a page that was written for the site."""
    return linked((HERE / f"{name}.md").read_text(encoding="utf-8"), f"{OWN}{name}.md")


def first_page() -> str:
    """index.md, with the README's figure and its sentence for those who cannot see it, and all that follows."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    figure = next(line for line in readme.splitlines() if line.startswith("!["))
    table = re.search(r"^\| Notebook \|.*?(?=\n\n)", readme, re.MULTILINE | re.DOTALL)
    assert table
    tab = (
        "\n".join(["In a browser tab, with nothing to install:", "", *(f"- [{t}](<{PUBLIC}{a}>)" for t, a in TAB)])
        if TAB
        else ""
    )
    words = {
        "FIGURE": figure,
        "TABLE": table[0],
        "TAB": tab,
        "BINDER": f"[open the first notebook]({binder(COURSE[0])})",
    }
    text = re.sub(r"@(\w+)@", lambda word: words[word[1]], own("index"))
    return "".join(
        [
            text,
            toctree(COURSE, "The course", hidden=True),
            toctree(["glossary.md", "solutions.md"], "Beside it", hidden=True),
            toctree(
                ["Install and begin <README.md>", "notebooks/README.md", "servers/README.md", *TEACHING],
                "Manuals",
                hidden=True,
            ),
            toctree(["api/lab.rst", "api/servers.rst"], "Reference", hidden=True),
            toctree(["SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"], "The project", hidden=True),
        ]
    )


# --- notebooks


def binder(path: str) -> str:
    """Binder's address for a notebook, as the README's badge has it."""
    return f"{ADDRESS.replace('https://github.com/', 'https://mybinder.org/v2/gh/')}/HEAD?urlpath=lab/tree/{path}"


def notebook(path: str) -> str:
    """The notebook for Sphinx: links as `linked`, figures with their alternative texts, and how to take it along."""
    book = nbformat.read(ROOT / path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, path)
        else:
            described(cell)
    name = PurePosixPath(path).name
    ways = f'<a href="{binder(path)}">Open in Binder</a> <a href="{name}" download>Download this notebook</a>'
    first = book.cells[0]
    title, _, rest = first.source.partition("\n")
    first.source = f'{title}\n\n<p class="take">{ways}</p>\n{rest}'
    return str(nbformat.writes(book))


def described(cell: Any) -> None:
    """Hand a cell's alternative text to its picture; the paragraph that says it in Jupyter is not needed then."""
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    if not pictures:
        return
    texts = {output.metadata["image/png"]["alt"] for output in pictures}
    if len(texts) > 1:
        raise SiteError(f"one cell draws {len(texts)} figures: a cell here has one")
    cell.metadata["mystnb"] = {"image": {"alt": texts.pop()}}
    cell.outputs = [o for o in cell.outputs if "Figure: " not in o.get("data", {}).get("text/html", "")[:200]]


# --- words


def defined() -> dict[str, list[tuple[str, str]]]:
    """Every word of the notebooks' lists of words: what is said of it, and the notebook that says it.

    Words that share a line explain each other: each has the whole line.
    """
    found = defaultdict[str, list[tuple[str, str]]](list)
    spelling = dict[str, str]()
    for path in COURSE:
        cells = nbformat.read(ROOT / path, as_version=4).cells
        prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        [lines] = re.findall(r"^## Words\n+(.*?)(?=^## |\Z)", prose, re.MULTILINE | re.DOTALL)
        for line in lines.strip().splitlines():
            words = re.findall(r"\*\*(.+?)\*\*", line)
            alone = re.fullmatch(r"- \*\*[^*]+\*\*: (.+)", line) if len(words) == 1 else None
            for word in words:
                spelled = spelling.setdefault(word.strip("`").lower(), word.strip("`"))
                found[spelled].append((alone[1] if alone else line.removeprefix("- "), path))
    return found


def glossary() -> str:
    """The words of all notebooks in the order of the alphabet, each with where it is explained."""
    lines = [own("glossary"), "```{glossary}"]
    for word, sayings in sorted(defined().items(), key=lambda item: item[0].lower()):
        lines.append(word)
        for number, (said, path) in enumerate(sayings):
            where = f"[{PurePosixPath(path).name[:2]}]({path}#words)"
            lines += [*[""] * bool(number), f"  {said} ({where})"]
        lines.append("")
    return "\n".join([*lines, "```", ""])


# --- the API


def api() -> dict[str, str]:
    """A page for each wing of the lab and each module of the servers, which autodoc fills from their docstrings."""
    pages = dict[str, str]()
    for package, imported in (("lab", True), ("servers", False)):
        top = importlib.import_module(package)
        names = sorted(
            module.name for module in pkgutil.walk_packages(top.__path__, f"{package}.")
            if not re.search(r"\._|\.lab\.[a-z]+\.", module.name) and (not imported or module.ispkg)
        )  # fmt: skip
        for name in names:
            options = ["   :members:", *["   :imported-members:"] * imported]
            pages[f"api/{name}.rst"] = "\n".join([heading(name), f".. automodule:: {name}", *options, ""])
        lines = [
            heading(f"The package {package}"),
            f".. automodule:: {package}",
            "",
            ".. toctree::",
            "   :maxdepth: 1",
            "",
        ]
        pages[f"api/{package}.rst"] = "\n".join([*lines, *(f"   {name}" for name in names), ""])
    return pages


def heading(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python notebooks/site/build.py OUT", file=sys.stderr)
        return 2
    try:
        build(Path(arguments[0]).resolve())
    except SiteError as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
