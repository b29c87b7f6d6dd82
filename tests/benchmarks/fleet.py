"""A plan held against a run: one process, many event streams, an update now and then, and how late the last one is.

    python tests/benchmarks/fleet.py [--clients 10000] [--model file-updates] [--rate 1] [--seconds 10]

The server and the crowd run in processes of their own, on one machine. What the server used gives the unit costs, and
they give the plan that is printed beside the run. Beyond 25 000 clients the crowd uses more source addresses.
"""

import argparse
import asyncio
import resource

import numpy as np

from lab.cost import crowd
from lab.theory import fleet


async def run(model: str, clients: int, rate: float, seconds: float) -> None:
    sizes = [clients // 10, clients // 3, clients]
    found = await crowd.by_size(model, sizes, rate=rate, seconds=seconds)
    publish, delivery = crowd.cost(found)
    print(f"{model}: p = {1e6 * publish:.0f} µs an update, c = {1e6 * delivery:.1f} µs a delivery")
    for size, heard in found.items():
        plan = fleet.last_delay(size, delivery, publish)
        print(
            f"{size:6} clients, connected in {heard.took:.1f} s: the last after {1000 * heard.delay(0.5):.0f} ms "
            f"(median; p95 {1000 * heard.delay():.0f} ms), plan {1000 * plan:.0f} ms; lost {heard.lost}, "
            f"twice {heard.duplicated}, out of order {heard.out_of_order}; {heard.memory / 2**20:.0f} MiB; "
            f"the crowd was busy {heard.cpu / seconds:.0%} of the time"
        )
    memory = np.polyfit(sizes, [heard.memory for heard in found.values()], 1)[0]
    print(f"{memory / 1024:.1f} KiB a connection")
    if any(heard.lost or heard.duplicated or heard.out_of_order for heard in found.values()):
        raise SystemExit(1)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", type=int, default=10_000)
    p.add_argument("--model", choices=["sse", "file-updates"], default="file-updates")
    p.add_argument("--rate", type=float, default=1.0, help="updates a second")
    p.add_argument("--seconds", type=float, default=10.0)
    options = p.parse_args()
    crowd.room(options.clients)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (options.clients + 200, most))  # the server inherits it
    asyncio.run(run(options.model, options.clients, options.rate, options.seconds))


if __name__ == "__main__":
    main()
