"""By hand: does notebook 05 say the same on a quiet machine and on a busy one, and do its intervals cover what differs?

    notebook 05, several times, quiet │ beside spinners on every CPU ─▶ its verdicts: the same? ─▶ its costs: covered?

    .venv/bin/python tests/benchmarks/verdicts.py                          five runs quiet, five busy (10 to 20 minutes)
    .venv/bin/python tests/benchmarks/verdicts.py --quiet 5 --busy 0       five as the machine is, beside those kept
    .venv/bin/python tests/benchmarks/verdicts.py --quiet 0 --busy 0       only the table of those kept

A verdict is what the notebook says in words: which of two costs is told apart and who is cheaper, which claim of the
article holds, what is recommended. Where it says that it cannot tell, it gives none, and that contradicts nobody: it is
counted beside. A cost is covered where every run's interval has every other run's value in it.

Each run is added to verdicts.json beside this file, with how busy the machine was, and compared with all that are
there; `--anew` begins with an empty one. So quiet runs and busy ones may be days apart.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil

from lab.cost.measuring import SILENT
from lab.teaching.client import Client

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "05_side_by_side.ipynb"
KEPT = Path(__file__).with_suffix(".json")
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"
ASK = """
import json
advised = {who: advice for who, (_, advice, _) in theirs.items()}
costs = {}
for each in measured:
    for name, cost in [*each.cpu.items(), ("memory", each.memory)]:
        if name != "idle":
            costs[f"{each.column}: {each.model}, {name}"] = list(cost[:3])
print(json.dumps({"verdicts": told | verdicts.words | choices | advised, "costs": costs}))
"""


def main() -> int:
    """Run, keep, compare, print; 1 if a verdict changes or a cost is not covered."""
    p = argparse.ArgumentParser(description="Runs notebook 05 again and again, and compares what it says.")
    p.add_argument("--quiet", type=int, default=5, metavar="N", help="runs on the machine as it is (5)")
    p.add_argument("--busy", type=int, default=5, metavar="N", help="runs beside a spinner on every CPU (5)")
    p.add_argument("--anew", action="store_true", help="forget the runs that are kept")
    options = p.parse_args()
    runs: list[dict[str, Any]] = [] if options.anew or not KEPT.exists() else json.loads(KEPT.read_text())
    for spin in [False] * options.quiet + [True] * options.busy:
        begin = time.perf_counter()
        with spinners((psutil.cpu_count() or 1) if spin else 0):
            runs.append(said())
        runs[-1]["load"], seconds = round(psutil.getloadavg()[0], 1), round(time.perf_counter() - begin)
        runs[-1]["seconds"] = seconds
        KEPT.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
        print(
            f"run {len(runs)}: {len(runs[-1]['verdicts'])} verdicts in {seconds} s at load {runs[-1]['load']}",
            flush=True,
        )
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
    Client(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    found: dict[str, Any] = json.loads(notebook.cells[-1].outputs[0].text)
    for cost, values in found["costs"].items():
        found["costs"][cost] = [float(f"{value:.4g}") for value in values]
    return found


def report(runs: list[dict[str, Any]]) -> int:
    """Print the verdicts, those that changed first, and the costs; 1 if one changed, or a cost was not covered."""
    verdicts = defaultdict(list)
    for run in runs:
        for what, word in run["verdicts"].items():
            verdicts[what].append(word)
    given = {what: [word for word in words if word != SILENT] for what, words in verdicts.items()}
    changed = [what for what, words in given.items() if len(set(words)) > 1]
    for what in sorted(given, key=lambda what: what not in changed):
        counted = [f"{word} ({given[what].count(word)})" for word in sorted(set(given[what]))]
        if silent := len(verdicts[what]) - len(given[what]):
            counted.append(f"{SILENT} ({silent})")
        print(f"{'CHANGED' if what in changed else 'same':8}{what:76}{'; '.join(counted)}")
    bare = 0
    print(f"\n{'cost':58}{'least':>9}{'most':>9}{'covered':>9}")
    for cost in runs[0]["costs"]:
        intervals = [run["costs"][cost] for run in runs]
        values = [value for value, _, _ in intervals]
        inside = [low <= value <= high for _, low, high in intervals for value in values]
        bare += not all(inside)
        scale, unit = (1 / 1024, "KiB") if cost.endswith("memory") else (1e6, "µs")
        covered = sum(inside) / len(inside)
        print(f"{cost:58}{min(values) * scale:9.3g}{max(values) * scale:9.3g} {unit:4}{covered:5.0%}")
    loads, seconds = [run["load"] for run in runs], [run["seconds"] for run in runs]
    print(f"\n{len(runs)} runs of {min(seconds)} to {max(seconds)} s at loads of {min(loads):g} to {max(loads):g}: "
          f"{len(changed)} of {len(verdicts)} verdicts changed, {bare} of {len(runs[0]['costs'])} costs not covered "
          "everywhere")  # fmt: skip
    return 1 if changed or bare else 0


if __name__ == "__main__":
    sys.exit(main())
