"""What the command lines of clients and mirror share: streams that are there, and an end in one line at most."""

import asyncio
import io
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from lab.clients.answers import ClientError
from servers.arguments import open_standard_streams, printable

WORTH_IT = 2.0  # seconds; of what takes no longer, nobody needs to be told how far it is


def run(program: str, main: Callable[[], Coroutine[Any, Any, None]], *, interrupted: int = 0) -> int:
    """Run a command to its end; return the exit status: 2 after a line that says why, `interrupted` after a signal."""
    open_standard_streams()
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  # for as long as the program runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have characters that this terminal has not
    try:
        asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return interrupted
    except BrokenPipeError:  # what read our lines has seen enough; the interpreter's last flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ClientError, OSError, ValueError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"{program}: {printable(text)}", file=sys.stderr)
        return 2
    return 0


def watched() -> bool:
    """Whether somebody sits in front of this loop: at a terminal, or at a notebook that could also ask (`input()`).

    Nobody does in virtual time, whose loop has a `mode`: a bar would start a thread in it, besides.
    """
    if hasattr(asyncio.get_running_loop(), "mode"):
        return False
    notebook = sys.modules.get("IPython")  # where it is not loaded there is none
    shell: Any = notebook and notebook.get_ipython()
    if not hasattr(shell, "get_parent"):
        return sys.stderr is not None and sys.stderr.isatty()
    return bool(shell.get_parent().get("content", {}).get("allow_stdin"))
