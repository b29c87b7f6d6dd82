"""The house: which room may import from which; no arrow points upward, and none goes round in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVERS, LAB = ROOT / "servers", ROOT / "notebooks" / "lab"
PRODUCT = {"clients", "mirror"}
BELOW = {  # what each wing of lab may import from, servers apart
    "clients": set[str](),
    "mirror": {"clients"},
    "theory": set[str](),
    "proxies": set[str](),
    "virtual": set[str](),
    "bench": {"virtual", "clients", "mirror", "proxies", "theory"},
    "tab": {"bench", "virtual", "theory"},
    "cost": {"bench", "virtual", "clients", "proxies", "theory"},
    "faults": {"bench", "virtual", "clients", "mirror", "proxies", "theory"},
    "figures": {"faults", "cost", "bench", "virtual", "clients", "proxies", "theory"},
    "checks": {"faults", "cost", "bench", "virtual", "clients", "proxies", "theory", "figures"},
    "teaching": set[str](),
}
MODELS = {"short_polling", "long_polling", "websocket", "sse"}


def imported(path: Path) -> Iterator[str]:
    """The dotted names of what a module imports from this repository, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


def test_servers_know_nothing_of_the_lab() -> None:
    """No server imports from lab."""
    assert [path.name for path in modules(SERVERS) for name in imported(path) if name.split(".")[0] == "lab"] == []


def test_a_model_does_not_know_another() -> None:
    """The four models' modules import from the feed and the service, never from each other."""
    for model in MODELS:
        names = {name.split(".")[1] for name in imported(SERVERS / f"{model}.py") if name.startswith("servers.")}
        assert names.isdisjoint(MODELS)


def test_every_wing_is_on_the_map() -> None:
    """The wings of lab are those of this test, and each has a line in the map of lab's docstring."""
    wings = {path.name for path in LAB.iterdir() if (path / "__init__.py").exists()}
    assert wings == set(BELOW)
    text = ast.get_docstring(ast.parse((LAB / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert [line.split()[0] for line in text.splitlines()[2:]] == list(reversed(BELOW))


@pytest.mark.parametrize("wing", BELOW)
def test_imports_point_downward(wing: str) -> None:
    """A wing imports from the wings below it only."""
    for path in modules(LAB / wing):
        names = {name.split(".")[1] for name in imported(path) if name.startswith("lab.")}
        assert names <= BELOW[wing] | {wing}, path


def test_below_is_no_circle() -> None:
    """What is below a wing has that wing nowhere below itself."""
    for wing, below in BELOW.items():
        assert all(wing not in BELOW[other] | {other} for other in below)
