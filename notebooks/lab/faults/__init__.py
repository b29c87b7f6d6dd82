"""What breaks, on purpose: every fault against every model and the file service, each cell a real run.

subjects.py   the columns: a server and its robust client, and their time limits
world.py      one run: a server, a client, what is between them, and what each of them notices
simulated.py  the world in VIRTUAL time            live.py  the world of real sockets, threads, nginx
catalogue.py  the rows: each fault a coroutine of a few lines
outcome.py    what became of a cell                matrix.py  all cells, as a table, and held against guesses
"""

from lab.faults.catalogue import FAULTS, Fault
from lab.faults.matrix import Cell, Judgement, Matrix, live, run_matrix, run_row, simulate
from lab.faults.outcome import Outcome
from lab.faults.subjects import COURSE, QUICK, SUBJECTS, Pace, Subject

__all__ = [
    "COURSE",
    "FAULTS",
    "QUICK",
    "SUBJECTS",
    "Cell",
    "Fault",
    "Judgement",
    "Matrix",
    "Outcome",
    "Pace",
    "Subject",
    "live",
    "run_matrix",
    "run_row",
    "simulate",
]
