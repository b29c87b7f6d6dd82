"""A notebook's client that sleeps through no message of its kernel.

    Client(notebook, ...).execute() ─▶ each cell ─▶ nbclient waits for its end
                                          └─ once a second: is there anything to be read?

A ZeroMQ socket tells an event loop of a change only (ZMQ_FD in zmq_getsockopt(3): "edge-triggered"). On a busy machine
one can be missed, and nbclient then waits until a cell's time is over, though its answer has come long ago.
"""

import asyncio
from typing import Any

from nbclient import NotebookClient
from nbclient.util import run_sync
from nbformat import NotebookNode

LOOK = 1.0  # s


class Client(NotebookClient):
    """nbclient's, with a look at its sockets from time to time."""

    async def async_execute_cell(self, *what: Any, **options: Any) -> NotebookNode:
        """Run a cell; as nbclient's."""
        looking = asyncio.create_task(self._look())
        try:
            return await super().async_execute_cell(*what, **options)
        finally:
            looking.cancel()

    execute_cell = run_sync(async_execute_cell)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            if kernel := self.kc:
                for channel in (kernel.shell_channel, kernel.iopub_channel):
                    _ = channel.socket.EVENTS  # to ask for them has what waits handled
