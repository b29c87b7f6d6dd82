"""A real nginx between clients and servers: plain processes on a free port, their files in a temporary folder.

    with Nginx(f"location / {{ proxy_pass {server.url}; }}") as nginx:      # nginx.url

nginx is given its listening socket instead of opening one, as when a new nginx takes over from an old one: so the port
is free for certain, and a client that is early waits in the socket's queue. Nothing is read from /etc, and no
privilege is needed.
"""

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

START_LIMIT = 10.0  # seconds until an nginx that does not come up is given up
STOP_LIMIT = 5.0  # seconds until one that does not end is killed
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"  # where Debian puts it, and not everybody looks

CHUNKS = "proxy_http_version 1.1; proxy_set_header Connection '';"
STREAMS = f"{CHUNKS} proxy_buffering off;"  # what a stream needs
CONFIGURATION = """
daemon off; pid nginx.pid; error_log error.log; worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    {http}
    server {{
        listen 127.0.0.1:{port} {options};
        {server}
    }}
}}
"""


class NginxError(RuntimeError):
    """An nginx that is not there or did not start; the text is what it said."""


def installed() -> str | None:
    """The path of the nginx program, or None; always None on Windows, where a socket cannot be handed to it."""
    if sys.platform == "win32":
        return None
    return shutil.which("nginx") or shutil.which("nginx", path=SYSTEM_FOLDERS)


def version() -> str:
    """What it calls itself: "nginx/1.22.1". Raises NginxError where there is none."""
    said = subprocess.run([_program(), "-v"], capture_output=True, text=True, check=True).stderr
    return said.removeprefix("nginx version: ").split()[0]


def certificate() -> dict[str, bytes]:
    """A key, and a certificate of 127.0.0.1 with the authority that vouches for it: "key.pem" and "cert.pem".

    As `files` of an Nginx they are found by `ssl_certificate cert.pem; ssl_certificate_key key.pem;`. A client trusts
    them by `ssl.create_default_context(cadata=files["cert.pem"].decode())`.
    """
    import trustme  # 0.1 s, which only TLS is worth

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain = [*issued.cert_chain_pems, authority.cert_pem]
    return {"key.pem": issued.private_key_pem.bytes(), "cert.pem": b"".join(pem.bytes() for pem in chain)}


class Nginx:
    """An nginx that runs until `stop()`; `url` is where it listens, on 127.0.0.1.

    `server` and `http` are directives for the blocks of these names, `options` what follows the address in `listen`
    ("ssl http2"), `files` are written beside the configuration, where it finds them by their relative names.
    Raises NginxError with nginx's own words when it does not start.
    """

    def __init__(
        self, server: str, *, http: str = "", options: str = "", files: Mapping[str, bytes] | None = None
    ) -> None:
        program = _program()
        self._files = tempfile.TemporaryDirectory(prefix="nginx-", ignore_cleanup_errors=True)
        folder = Path(self._files.name)
        folder.chmod(0o755)  # started by root, its worker is somebody else
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            self.port: int = listener.getsockname()[1]
            self.url = f"http{'s' if 'ssl' in options.split() else ''}://127.0.0.1:{self.port}"
            text = CONFIGURATION.format(server=server, http=http, options=options, port=self.port)
            for name, content in {"nginx.conf": text.encode(), **(files or {})}.items():
                (folder / name).write_bytes(content)
            self._process = subprocess.Popen(
                [program, "-p", f"{folder}/", "-c", "nginx.conf", "-e", "error.log"],
                env=os.environ | {"NGINX": f"{listener.fileno()};"},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        atexit.register(self.stop)
        self._wait_until_started(folder)

    def __repr__(self) -> str:
        return f"<nginx at {self.url}, {'running' if self._process.poll() is None else 'stopped'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, and every connection through it. A second call does nothing."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._files.cleanup()
        atexit.unregister(self.stop)

    def _wait_until_started(self, folder: Path) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not (folder / "nginx.pid").exists():
            if self._process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
                continue
            log = folder / "error.log"
            said = log.read_text(errors="replace").strip() if log.exists() else ""
            self.stop()
            raise NginxError(said or f"not ready within {START_LIMIT:g} s")


def _program() -> str:
    program = installed()
    if program is None:
        raise NginxError("nginx is not installed")
    return program


def balancer(urls: Sequence[str]) -> Nginx:
    """An nginx that hands each connection to the next of these servers, round robin; streams pass as they come."""
    servers = " ".join(f"server {urlsplit(url).netloc} max_fails=0;" for url in urls)
    http = f"upstream workers {{ {servers} }} proxy_next_upstream error timeout; {STREAMS}"
    return Nginx("location / { proxy_pass http://workers; }", http=http)


def cache(url: str, *, seconds: float = 1.0, lock: bool = True) -> Nginx:
    """An nginx that keeps each answer for whole `seconds`, whatever the server says of caching.

    With `lock` it asks for what is not there once at a time (`proxy_cache_lock`), and whoever comes meanwhile waits.
    """
    kept = f"proxy_cache polls; proxy_cache_valid 200 {seconds:g}s; proxy_ignore_headers Cache-Control; "
    waits = "proxy_cache_lock on; proxy_cache_lock_timeout 60s; proxy_cache_lock_age 60s; " if lock else ""
    return Nginx(
        f"location / {{ proxy_pass {url}; {kept} {waits} }}",
        http=f"proxy_cache_path cache keys_zone=polls:1m; {CHUNKS}",  # what is not buffered is not kept either
    )


def secured(url: str, *, http2: bool = True) -> Nginx:
    """An nginx that ends TLS before a server, with `certificate()`, and speaks HTTP/2 with those who can."""
    return Nginx(
        f"ssl_certificate cert.pem; ssl_certificate_key key.pem; location / {{ proxy_pass {url}; }}",
        http=STREAMS,
        options="ssl http2" if http2 else "ssl",
        files=certificate(),
    )
