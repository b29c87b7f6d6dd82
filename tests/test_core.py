"""The bench's core, without what a browser's Python would have to fetch first."""

import subprocess
import sys

ABSENT = ("numpy", "matplotlib", "IPython", "tqdm", "ipywidgets", "psutil")
PROGRAM = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())

import asyncio, functools
from lab import clients
from lab.bench import LIVE, Schedule, Trial, experiment, side_by_side, table
from lab.bench.metronome import metronome
from lab.virtual import Link, run_virtual, serve
from servers import long_polling, short_polling, sse, websocket

async def follow(robust, url, log):
    async for update in robust(url, log.cursor, log=log):
        log.deliver({{"seq": update.seq}})

schedule = Schedule.poisson(2, 20, seed=3)
runs = []
for server, robust in (
    (short_polling, functools.partial(clients.short_polling, interval=1.0)),
    (long_polling, clients.long_polling),
    (websocket, clients.websocket),
    (sse, clients.sse),
):
    runs.append(Trial(server.create_app, functools.partial(follow, robust), schedule, clients=2).virtual(delay=0.025))
live = asyncio.run(Trial(sse.create_app, functools.partial(follow, clients.sse), Schedule.at([0.1], 0.3)).live())
for run in (*runs, live):
    assert run.lost == run.duplicated == run.out_of_order == run.unexpected == 0, run
    assert 0.025 * (run is not live) - 1e-9 <= run.delay(0) <= run.mean_delay <= run.delay(1), run
    run.busy, run.held_peak, run._repr_html_()
print(table(runs))
assert not any(name in sys.modules for name in {ABSENT})
"""


def test_a_trial_runs_without_numpy() -> None:
    """Schedule, clients, servers, virtual time, result and table need neither numpy nor the notebook's own packages."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    names = [line.split("  ")[0] for line in done.stdout.splitlines()[2:]]
    assert names == ["short polling", "long polling", "WebSocket", "SSE"]
