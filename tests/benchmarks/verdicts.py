"""By hand: does notebook 05 say the same on a quiet machine and on a busy one, and do its intervals cover what differs?

    notebook 05, several times, quiet │ beside spinners on every CPU ─▶ its verdicts: the same? ─▶ its costs: covered?

    .venv/bin/python tests/benchmarks/verdicts.py                five runs quiet, five busy (10 to 20 minutes)
    .venv/bin/python tests/benchmarks/verdicts.py --quiet 0 --busy 2

A verdict is what the notebook says in words: which of two costs is told apart and who is cheaper, which claim of the
article holds, what is recommended. A cost is covered where every run's interval has every other run's value in it.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "05_side_by_side.ipynb"
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"
ASK = """
import json
advised = {who: advice for who, (_, advice, _) in theirs.items()}
costs = {}
for each in measured:
    for name, cost in [*each.cpu.items(), ("memory", each.memory)]:
        if name != "idle":
            costs[f"{each.column}: {each.model}, {name}"] = list(cost)
print(json.dumps({"verdicts": told | verdicts.words | choices | advised, "costs": costs}))
"""


def main() -> int:
    """Run, compare, print; 1 if a verdict changes or a cost is not covered."""
    p = argparse.ArgumentParser(description="Runs notebook 05 again and again, and compares what it says.")
    p.add_argument("--quiet", type=int, default=5, metavar="N", help="runs on the machine as it is (5)")
    p.add_argument("--busy", type=int, default=5, metavar="N", help="runs beside a spinner on every CPU (5)")
    options = p.parse_args()
    runs = []
    for spin in [False] * options.quiet + [True] * options.busy:
        with spinners((psutil.cpu_count() or 1) if spin else 0):
            runs.append(said())
        print(f"run {len(runs)}, {'busy' if spin else 'quiet'}: {len(runs[-1]['verdicts'])} verdicts", flush=True)
    return report(runs)


@contextlib.contextmanager
def spinners(number: int) -> Iterator[None]:
    """Keep so many CPUs busy with work that gives way to nobody."""
    with contextlib.ExitStack() as ends:
        for _ in range(number):
            process = subprocess.Popen([sys.executable, "-c", SPIN])
            ends.callback(process.wait)
            ends.callback(process.kill)
        yield


def said() -> dict[str, Any]:
    """What one run of the notebook says, in words and in numbers."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    found: dict[str, Any] = json.loads(notebook.cells[-1].outputs[0].text)
    return found


def report(runs: list[dict[str, Any]]) -> int:
    """Print the verdicts that changed and the costs that were not covered; 1 if there is any."""
    verdicts = defaultdict(list)
    for run in runs:
        for what, word in run["verdicts"].items():
            verdicts[what].append(word)
    changed = {what: words for what, words in verdicts.items() if len(set(words)) > 1}
    for what, words in changed.items():
        print(f"changed: {what}: {'; '.join(words)}")
    bare = 0
    for cost in runs[0]["costs"]:
        intervals = [run["costs"][cost] for run in runs]
        values = [value for value, _, _ in intervals]
        inside = [low <= value <= high for _, low, high in intervals for value in values]
        bare += not all(inside)
        scale = 1 / 1024 if cost.endswith("memory") else 1e6
        print(f"{cost:58} {min(values) * scale:8.3g} to {max(values) * scale:8.3g}, "
              f"{sum(inside) / len(inside):4.0%} covered")  # fmt: skip
    print(f"{len(runs)} runs, {len(verdicts)} verdicts, {len(changed)} changed; {bare} costs not covered everywhere")
    return 1 if changed or bare else 0


if __name__ == "__main__":
    sys.exit(main())
