"""A command on a machine that stands still now and then: what only holds on a quick one fails.

    python tests/benchmarks/stalls.py [--seed 1] [--stall 0.15 0.5] [--every 2.5] COMMAND ...

All processes of the command, or one of them, are stopped (SIGSTOP) and let go on again. Whatever the command itself has
stopped stays so. Its status is the command's.
"""

import argparse
import random
import subprocess
import sys
import time

import psutil


def stall(processes: list[psutil.Process], seconds: float) -> None:
    """Stop these for so long; who has ended meanwhile, or stands still already, is left alone."""
    stopped = []
    for process in processes:
        try:
            if process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                process.suspend()
                stopped.append(process)
        except psutil.NoSuchProcess:
            continue
    time.sleep(seconds)
    for process in stopped:
        try:
            process.resume()
        except psutil.NoSuchProcess:
            continue


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=1, help="of which stop, when and for how long")
    p.add_argument("--stall", type=float, nargs=2, default=[0.15, 0.5], metavar="S", help="seconds, from and to")
    p.add_argument("--every", type=float, default=2.5, metavar="S", help="seconds between two, on average")
    p.add_argument("command", nargs=argparse.REMAINDER)
    options = p.parse_args()
    if not options.command:
        p.error("no command")
    rng = random.Random(options.seed)
    command = subprocess.Popen(options.command)
    first = psutil.Process(command.pid)
    while command.poll() is None:
        time.sleep(options.every * rng.uniform(0.3, 1.7))
        try:
            tree = [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        stall(tree if rng.random() < 0.6 else [rng.choice(tree)], rng.uniform(*options.stall))
    return command.wait()


if __name__ == "__main__":
    sys.exit(main())
