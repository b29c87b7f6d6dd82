"""The list of models: whoever speaks of models speaks of these, and of no other."""

import subprocess
import sys

import pytest

from lab import clients, theory
from lab.cost import load, measuring
from lab.figures import STYLES
from lab.tab.stage import SETTINGS
from servers.__main__ import build, parser
from servers.feed import Feed
from servers.models import COMPOSED, MODELS, SLUGS, UnknownModel, model
from servers.service import PAGES
from tests.support import on_a_loop

NONE = f"no model is called 'carrier-pigeon': there are {', '.join(SLUGS)}"


def test_every_table_has_the_same_models() -> None:
    """Clients, raw clients, laws, styles and the demo's page name the models of the list, in its order."""
    slugs, names = [each.slug for each in MODELS], [each.name for each in MODELS]
    assert list(clients.MODELS) == slugs
    assert list(load.KINDS) == list(SETTINGS) == slugs
    assert list(theory.MODELS) == names
    assert [name for name in STYLES if name in names] == names
    page = (PAGES / "demo.js").read_text(encoding="utf-8")
    table = page[page.index("const MODELS = {") :]
    assert [line.split(":")[0].strip(' "') for line in table[: table.index("};")].splitlines()[1:]] == slugs


@pytest.mark.parametrize("slug", SLUGS)
def test_a_model_is_found_by_slug_and_name(slug: str) -> None:
    """Either word finds the row, whose factory makes an application that answers at its path and has a live page."""
    found = model(slug)
    assert found is model(found.name)
    app = found.create_app(Feed())
    assert found.path in {getattr(route, "path", None) for route in app.routes} or found.slug == "demo"
    assert (PAGES / f"{slug}.html").is_file()


@on_a_loop
async def test_an_unknown_model_is_an_error() -> None:
    """Nobody takes another model for it: not the list, not the raw clients, not who measures."""
    with pytest.raises(UnknownModel, match=NONE):
        model("carrier-pigeon")
    with pytest.raises(UnknownModel, match=NONE):
        await load.Load("carrier-pigeon", "http://127.0.0.1:9").connect(1)
    with pytest.raises(UnknownModel, match=NONE):
        await measuring.measure(["carrier-pigeon"])
    for composed in COMPOSED:
        with pytest.raises(ValueError, match=f"there is no load to measure {composed.name} with"):
            await measuring.measure([composed.slug])
    with pytest.raises(ValueError, match="there are no raw clients of file updates"):
        await load.Load("file-updates", "http://127.0.0.1:9").connect(1)


def test_the_command_line_has_every_model() -> None:
    """What a row says that its factory takes is an option, or made of some: each model is built with what it takes."""
    for slug in SLUGS:
        app = build(parser().parse_args([slug, "--rate", "2"]))
        assert app.title == f"File updates by {model(slug).name}"


def test_the_list_loads_no_server() -> None:
    """A client that looks up a model's path has not loaded a web framework for it."""
    program = (
        "import sys\n"
        "from servers.models import MODELS, model\n"
        "assert [model(each.slug).path for each in MODELS]\n"
        "print(sorted({'fastapi', 'starlette', 'uvicorn', 'pydantic'} & sys.modules.keys()))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=30) == "[]\n"
