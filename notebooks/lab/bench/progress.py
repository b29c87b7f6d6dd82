"""A progress bar for what takes longer than two seconds, for a person who waits, and gone when it is over.

Nothing is drawn when a machine executes the notebook: its page would keep a bar that never moves again.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from lab.clients.terminal import WORTH_IT, watched


@contextlib.asynccontextmanager
async def progress(seconds: float, what: str) -> AsyncIterator[None]:
    """Show a bar that fills in `seconds` while the block runs, named `what`; none in virtual time, soon over."""
    if seconds <= WORTH_IT or not watched():
        yield
        return
    drawing = asyncio.create_task(_draw(seconds, what))
    try:
        yield
    finally:
        drawing.cancel()
        await asyncio.wait({drawing})


async def _draw(seconds: float, what: str) -> None:
    from tqdm.auto import tqdm  # here: who needs no bar needs no tqdm, either

    begin = time.perf_counter()
    with tqdm(total=seconds, desc=what, leave=False, bar_format="{desc} {bar} {n:.0f} of {total:.0f} s") as bar:
        try:
            while True:
                bar.n = min(time.perf_counter() - begin, seconds)
                bar.refresh()
                await asyncio.sleep(0.2)
        finally:
            bar.n = seconds  # an unfinished bar would turn red and stay
