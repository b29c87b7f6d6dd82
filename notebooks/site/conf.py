"""How Sphinx makes the pages; build.py gathers what it reads."""

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

project = "Push and pull, measured"
author = "the course's authors"
html_title = project
language = "en"
extensions = ["myst_nb", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
highlight_language = "text"  # unless said otherwise; sources are Python
smartquotes = False  # the prose says what it means, and code is copied out of it

# notebooks: as they are stored
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they come from another host, and no stored output needs them
nb_render_markdown_format = "myst"
nb_render_image_options = {"align": "left"}
nb_cell_metadata_key = "mystnb"
myst_heading_anchors = 6
myst_links_external_new_tab = False

# the API: public names, as they are ordered and annotated in the source
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
add_module_names = False
toc_object_entries = False  # the page of a module lists its names itself

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_use_index = html_domain_indices = False  # the search has all names
html_show_search_summary = False  # it would fetch every page that is found
html_favicon = "../../servers/pages/icon.svg"
html_show_sphinx = False
html_show_copyright = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
copybutton_exclude = ".linenos, .gp, .go"


def plain(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring in free prose: paragraphs, lists, and drawings as they are drawn."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines[:] = "\n\n".join(drawn(block) if is_drawing(block) else prose(block) for block in blocks).split("\n")


def is_drawing(block: str) -> bool:
    """Whether a block is to be shown letter by letter: it is indented, or has columns or arrows."""
    return not block.startswith("- ") and bool(re.search(r"^ |\S {2,}\S|[─│┌└▶├]", block, re.MULTILINE))


def drawn(block: str) -> str:
    return "::\n\n" + "\n".join(f"   {line}" for line in block.split("\n"))


def prose(block: str) -> str:
    """A paragraph, or a list of points."""
    points = [re.sub(r"\s*\n\s*", " ", point) for point in re.split(r"^- ", block, flags=re.MULTILINE)]
    return "\n".join([escaped(points[0]), *(f"- {escaped(point)}" for point in points[1:])]).strip("\n")


def escaped(text: str) -> str:
    """Text of which only `code` is markup."""
    parts = re.split(r"`+([^`]+)`+", text.strip())
    parts[::2] = [re.sub(r"([\\*_|:`])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [rf"\ ``{part}``\ " for part in parts[1::2]]
    return re.sub(r"^(?=[\w#(]+[.)] |[-+•] )", r"\\", "".join(parts))


def unambiguous(app: Sphinx, tree: nodes.document) -> None:
    """Take the links from names without a module, as `bytes` in a signature: Sphinx would guess whose they are."""
    for link in list(tree.findall(pending_xref)):
        if link["refdomain"] == "py" and "." not in link["reftarget"]:
            link.replace_self(link.children)


def source(app: Sphinx, module: str) -> tuple[str, dict[str, Any]] | None:
    """Nothing of other people's sources (what is made by functools has its own); ours Sphinx finds by itself."""
    return None if is_ours(module) else ("", {})


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("lab", "servers")


def only_ours(app: Sphinx, env: Any) -> None:
    """Leave out the empty pages of other people's sources."""
    env._viewcode_modules = {module: found for module, found in env._viewcode_modules.items() if is_ours(module)}


def setup(app: Sphinx) -> None:
    app.connect("viewcode-find-source", source)
    app.connect("env-updated", only_ours)
    app.connect("doctree-read", unambiguous)
    app.connect("autodoc-process-docstring", plain)
