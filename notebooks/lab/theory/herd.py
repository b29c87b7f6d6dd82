"""Many clients at once, in numpy: what a server sees of a herd, and of a deploy, with each cure and without.

clients that broke in one instant ─▶ each one's next moments ─▶ arrivals ─▶ the worst window of them
servers that restart one by one   ─▶ who goes where          ─▶ shares, and what leases make of them
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from servers.limits import check_finite, check_positive, check_whole

Array = NDArray[np.float64]
BackOff = Literal["none", "equal", "full"]
ROUNDS = 64  # of attempts, after which a client is no longer followed


def reconnects(
    clients: int, back_off: BackOff, *, base: float = 1.0, cap: float = 30.0, down: float = 0.0, rtt: float = 0.05,
    seed: int = 1,
) -> Array:  # fmt: skip
    """The moments (s) of all attempts of clients whose streams broke at 0; the server is back `down` seconds later.

    Pause n is min(cap, base 2^n), b: "none" waits b, "equal" b/2 and as much again at random, "full" anything from 0 to
    b. An attempt takes a round trip; the first that the server answers is the last. Raises ValueError for another word.
    """
    check_whole(clients=clients, least=1, most=10**7)
    check_finite(base=base, cap=cap, down=down, rtt=rtt)
    rng = np.random.default_rng(seed)
    at, attempts = np.zeros(clients), list[Array]()
    for number in range(ROUNDS):
        most = min(cap, base * 2.0**number)
        match back_off:
            case "none":
                pause = np.full(len(at), most)
            case "equal":
                pause = most / 2 + rng.uniform(0, most / 2, len(at))
            case "full":
                pause = rng.uniform(0, most, len(at))
            case _:
                raise ValueError(f"a back-off is none, equal or full, not {back_off!r}")
        at = at + pause
        attempts.append(at)
        at = at[at < down] + rtt
        if not len(at):
            break
    return np.sort(np.concatenate(attempts))


def peak(moments: Array, window: float = 0.1) -> int:
    """The most of these moments, ascending, that lie in any `window` seconds."""
    check_positive(window=window)
    if not len(moments):
        return 0
    return int((np.arange(1, len(moments) + 1) - np.searchsorted(moments, moments - window, "right")).max())


def rolling_deploy(servers: int, clients: int, seed: int = 1) -> NDArray[np.int64]:
    """How many clients each server has, after each restart of one after the other; rows are moments, from the start.

    A server that goes sends its clients to any of the others; nobody goes back by himself. The last one to restart
    ends with nobody, the first with most: e.g. 3 servers of 100 clients end with about 175, 125 and 0.
    """
    check_whole(servers=servers, least=2, most=1000)
    check_whole(clients=clients, least=1, most=10**7)
    rng = np.random.default_rng(seed)
    held = np.full(servers, clients // servers, np.int64)
    held[: clients % servers] += 1
    rows = [held.copy()]
    for going in range(servers):
        others = np.full(servers, 1 / (servers - 1))
        others[going] = 0
        gone, held[going] = held[going], 0
        held = held + rng.multinomial(gone, others)
        rows.append(held.copy())
    return np.array(rows)


def rebalanced(held: NDArray[np.int64], ages: Array, jitter: float = 0.5, seed: int = 1) -> Array:
    """Shares of the servers, so many mean ages later, when each stream that ends goes to any server alike.

    A row for each of `ages`, ascending from 0. Streams are followed one by one, from a random moment of their lives.
    """
    check_finite(jitter=jitter, most=1)
    rng = np.random.default_rng(seed)
    servers, clients = len(held), int(held.sum())
    where = np.repeat(np.arange(servers), held)
    mean = 1 - jitter / 2
    drawn = rng.uniform(1 - jitter, 1, (clients, 64)) / mean  # of 64 lives, the one that a random moment falls into
    lives = _biased(drawn, rng)
    ends = lives * rng.uniform(0, 1, clients)
    rows = []
    for moment in ages:
        while (due := ends <= moment).any():
            where[due] = rng.integers(0, servers, int(due.sum()))
            ends[due] += rng.uniform(1 - jitter, 1, int(due.sum())) / mean
        rows.append(np.bincount(where, minlength=servers) / clients)
    return np.array(rows)


def _biased(drawn: Array, rng: np.random.Generator) -> Array:
    """One of each row, the longer the likelier."""
    sums = drawn.cumsum(axis=1)
    at = rng.uniform(0, 1, len(drawn)) * sums[:, -1]
    picked: Array = drawn[np.arange(len(drawn)), (sums < at[:, None]).sum(axis=1)]
    return picked
