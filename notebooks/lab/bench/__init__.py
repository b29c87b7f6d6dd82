"""The course's experiments: a schedule is published, clients follow it, and a Run says what became of every update.

schedule.py    when what is published: seeded, the same for all models
experiment.py  the clients of one or several servers follow it, LIVE or VIRTUAL
trial.py       a server, a client and a link, to be run in either
result.py      Run: requests, deliveries, delays, bytes; and its table
metronome.py   the instrument's own floor
progress.py    a bar for what takes seconds
edits.py       a seeded plan of edits of a real directory, and who looks at its copies
"""

from lab.bench.edits import NameReader, Original, Reader, differing, never_whole, plan, snapshot
from lab.bench.experiment import HTTP, Client, ClientLog, ExperimentError, experiment, side_by_side
from lab.bench.progress import progress
from lab.bench.result import LIVE, VIRTUAL, Run, count, seconds, table
from lab.bench.schedule import Schedule
from lab.bench.trial import Trial, Wired

__all__ = [
    "HTTP",
    "LIVE",
    "VIRTUAL",
    "Client",
    "ClientLog",
    "ExperimentError",
    "NameReader",
    "Original",
    "Reader",
    "Run",
    "Schedule",
    "Trial",
    "Wired",
    "count",
    "differing",
    "experiment",
    "never_whole",
    "plan",
    "progress",
    "seconds",
    "side_by_side",
    "snapshot",
    "table",
]
