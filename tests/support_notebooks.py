"""What the tests know of the notebooks' cells: what they claim, and what the text invites a reader to change.

The root conftest.py runs the notebooks by it; tests/test_notebooks.py holds their files to its rules.
"""

import ast
from collections.abc import Iterator

from nbformat import NotebookNode

# How many cells of a notebook are run again, at random, once it has run twice, and then every change that its text
# invites to, as (what stands in one cell, by what to replace it): that cell is run again, and all that follow.
AGAIN: dict[str, tuple[int, list[tuple[str, str]]]] = {
    "00_start_here": (
        15,
        [
            ("interval=0.5", "interval=0.1"),
            ("interval=0.1", "interval=2"),
            ("Schedule.poisson(rate=2, seconds=6, seed=7)", "Schedule.periodic(every=1, seconds=6)"),
            ("schedule, clients=1)", "schedule, clients=5)"),
            ('"of them for nothing": 5,', '"of them for nothing": "five",'),
        ],
    ),
    "01_short_polling": (15, [("one_minute(10)", "one_minute(30)"), ("T5, d = 5.0", "T5, d = 2.0")]),
    "02_long_polling": (
        15,
        [
            ('"requests per second": 10,', '"requests per second": "ten",'),
            ("often = 10", "often = 0.1"),
        ],
    ),
    "03_websockets": (15, []),  # its changes: tests/test_changes_websocket.py
    "04_server_sent_events": (15, [("RATE = 3 ", "RATE = 10 "), ('"requests": 48,', '"requests": "three",')]),
    "05_side_by_side": (3, [("gb_down=0.05", "gb_down=0")]),
    "06_file_updates": (10, [('"copy late by push (ms)": 25,', '"copy late by push (ms)": "soon",')]),
    "07_when_things_break": (
        3,
        [("beats = [1, 2, 5, 10, 15, 20]", "beats = [3, 15]"), ("lives = [2, 5, 15, 60]", "lives = [1, 10]")],
    ),
    "08_scaling_out": (8, [('"streams of one page over HTTP/1.1": 6,', '"streams of one page over HTTP/1.1": "six",')]),
}


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(number, cell) for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


def without_magics(source: str) -> tuple[str, list[str]]:
    """Return the Python of a cell, and the lines that are not Python but IPython's."""
    try:
        ast.parse(source)
    except SyntaxError:
        lines = source.splitlines()
        magics = [line.strip() for line in lines if line.lstrip().startswith(("%", "!", "?"))]
        return "\n".join("" if line.strip() in magics else line for line in lines), magics
    return source, []


def parse(cell: NotebookNode) -> ast.Module:
    return ast.parse(without_magics(cell.source)[0])


def called(expression: ast.expr) -> str:
    """Return `f` for `f(...)`, for `x.f(...)` and for `to_thread(f)`, and nothing for what is not a call."""
    if not isinstance(expression, ast.Call):
        return ""
    name = ast.unparse(expression.func).rpartition(".")[2]
    if name == "to_thread" and expression.args:
        return ast.unparse(expression.args[0]).rpartition(".")[2]
    return name


def claim_pairs(table: ast.expr) -> list[ast.Tuple]:
    """The (truth, evidence) of each sentence of a table of claims; none if anything else is among them."""
    values: list[ast.expr] = []
    if isinstance(table, ast.Dict):
        values = table.values
    elif isinstance(table, ast.DictComp):
        values = [table.value]
    pairs = [value for value in values if isinstance(value, ast.Tuple) and len(value.elts) == 2]
    return pairs if len(pairs) == len(values) else []


def claimed(tree: ast.Module) -> list[ast.expr]:
    """What a cell asserts: its assertions' tests, and the truths of its claims."""
    tests = [node.test for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) == "claims":
            pairs = claim_pairs(node.args[0])
            if not pairs:
                return []
            tests += [pair.elts[0] for pair in pairs]
    return tests


def turned_round(tree: ast.Module, claim: ast.expr) -> ast.Module:
    """The cell with that claim turned into its opposite."""

    class TurnsRound(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return ast.UnaryOp(ast.Not(), claim) if node is claim else self.generic_visit(node)

    result = ast.fix_missing_locations(TurnsRound().visit(tree))
    assert isinstance(result, ast.Module)
    return result


def false_claims(source: str) -> Iterator[str]:
    """The cell once for each of its claims, that one turned round."""
    for number in range(len(claimed(ast.parse(without_magics(source)[0])))):
        tree = ast.parse(without_magics(source)[0])
        yield ast.unparse(turned_round(tree, claimed(tree)[number]))
