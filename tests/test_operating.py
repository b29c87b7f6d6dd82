"""What the manual tells an operator is true: its unit starts the service, and behind its nginx all of it works by TLS.

the unit's ExecStart ◀── HTTP ── a real nginx with the manual's lines ◀── HTTPS ── the test, a mirror
"""

import asyncio
import configparser
import contextlib
import io
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.proxies import nginx
from servers.__main__ import parser
from servers.background import Server, serve
from servers.feed import HEARTBEAT, Feed
from servers.file_updates import create_app
from tests.support import PATIENCE, Events, command, ended, on_a_loop, until, url_of
from tests.support_mirror import contents, files, sha256, write

MANUAL = (Path(__file__).parent.parent / "servers" / "README.md").read_text(encoding="utf-8")
SECTION = MANUAL.partition("\n## Run it for real\n")[2].partition("\n## ")[0]
TOKEN = "a-token-of-many-characters"
FAR = "/".join(["日" * 80] * 13)  # a path of some 3 KB, which is 9 KB of %XX
behind_nginx = pytest.mark.skipif(not nginx.installed(), reason="needs nginx: apt-get install nginx")


def block(language: str) -> str:
    """The section's one block of code in a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.M | re.S)
    return str(text)


def put(text: str, places: dict[str, object]) -> str:
    """The text with what stands for the operator's own places, each there once, put in."""
    for place, own in places.items():
        assert text.count(place) == 1, place
        text = text.replace(place, str(own))
    return text


def unit(text: str) -> dict[str, dict[str, str]]:
    """Sections and settings of a systemd unit (systemd.syntax(7)), each setting at most once."""
    settings = configparser.ConfigParser(delimiters="=", interpolation=None)
    settings.optionxform = str  # type: ignore[method-assign,assignment]  # as its documentation says
    settings.read_string(text.replace("\\\n", " "))
    return {name: dict(section) for name, section in settings.items() if section}


SERVICE = unit(block("ini"))["Service"]


@contextlib.asynccontextmanager
async def operated(folder: Path) -> AsyncIterator[tuple[str, Path]]:
    """The URL of an nginx as in the manual before the command of the unit, and the directory that is watched."""
    directory, token = folder / "files", folder / "token"
    token.write_text(f"{TOKEN}\n")
    own = {"/srv/files": directory, "--port 8005": "--port 0", "%d/token": token, "%S/file-updates": folder}
    _, flag, *run = shlex.split(put(SERVICE["ExecStart"], own))
    assert flag == "-m"
    async with command(*run) as process:
        url = await url_of(process, "file-updates")
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(PATIENCE):
            while (await http.get(f"{url}/healthz")).status_code != 200:  # noqa: ASYNC110  # until its first look is over
                await asyncio.sleep(0.02)
        lines = put(
            block("nginx"),
            {
                "/etc/ssl/files.example.pem": "cert.pem",
                "/etc/ssl/files.example.key": "key.pem",
                "http://127.0.0.1:8005": url,
            },
        )
        server = re.fullmatch(r"server \{\n +listen 443 (?P<options>[^;]+);\n(?P<rest>.+)\}\n", lines, re.S)
        assert server
        with nginx.Nginx(
            server["rest"],
            options=server["options"],
            http="gzip on; gzip_types text/event-stream;",  # what holds a stream back, unless it asks not to be
            files=certified(folder),
        ) as proxy:
            yield proxy.url, directory
        process.send_signal(signal.SIGTERM)  # as systemd does
        assert await ended(process) == (0, "", "")


def certified(folder: Path) -> dict[str, bytes]:
    """A certificate for an nginx, which is also a file in the folder, to be trusted."""
    files = nginx.certificate()
    (folder / "cert.pem").write_bytes(files["cert.pem"])
    return files


def https(url: str, folder: Path, **options: Any) -> httpx.AsyncClient:
    """A client that trusts the certificate, and has the token."""
    trust = ssl.create_default_context(cafile=folder / "cert.pem")
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    limits = httpx.Timeout(PATIENCE, read=None)
    return httpx.AsyncClient(base_url=url, verify=trust, trust_env=False, timeout=limits, headers=bearer, **options)


async def opened(response: httpx.Response) -> Events:
    """The stream, after what it opens with."""
    stream = Events(response)
    while not (await stream.block()).startswith("id:"):
        pass
    return stream


def test_the_unit_starts_what_the_command_line_takes(tmp_path: Path) -> None:
    """The unit's options are ones that the server has, and its settings go together with them and with each other."""
    (tmp_path / "token").write_text(TOKEN)
    program, *arguments = shlex.split(SERVICE["ExecStart"])
    assert arguments[:2] == ["-m", "servers"]
    options = parser().parse_args([argument.replace("%d", str(tmp_path)) for argument in arguments[2:]])
    assert (options.model, options.token) == ("file-updates", TOKEN)
    assert f"proxy_pass http://{options.host}:{options.port};" in block("nginx")
    assert int(SERVICE["LimitNOFILE"]) >= 2 * options.max_connections  # a connection, and the file it is sent
    assert SERVICE["LoadCredential"].startswith("token:/etc/")  # what %d/token is read from, by root
    hidden = ("/home", "/root", "/run/user")  # by ProtectHome
    assert not any(path.startswith(hidden) for path in (program, str(options.watch)))
    assert SERVICE["DynamicUser"] == SERVICE["ProtectHome"] == SERVICE["NoNewPrivileges"] == "yes"
    assert "User" not in SERVICE


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    """Where there is a systemd it finds no mistake in the unit; everywhere, each line is a setting in a section."""
    assert list(unit(block("ini"))) == ["Service", "Install"]
    file = tmp_path / "file-updates.service"
    file.write_text(put(block("ini"), {"/opt/push-vs-pull/.venv/bin/python": sys.executable}))
    if analyze := shutil.which("systemd-analyze"):
        done = subprocess.run(
            [analyze, "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@behind_nginx
def test_through_tls_events_come_one_by_one_and_files_in_parts(tmp_path: Path) -> None:
    """Behind the manual's nginx an event arrives while the stream is open; conditions, ranges and token do as ever."""
    write(tmp_path, "files/a.txt", "alpha")
    write(tmp_path, f"files/{FAR}", "below")

    @on_a_loop
    async def body() -> None:
        async with operated(tmp_path) as (url, directory), https(url, tmp_path) as http:
            async with http.stream("GET", "/events", headers={"Accept-Encoding": "gzip"}) as response:
                stream = await opened(response)
                for number, name in enumerate(("b.txt", "c.txt"), start=1):
                    write(tmp_path, name, "news")
                    (tmp_path / name).rename(directory / name)  # whole: it is one update
                    update = await stream.update()
                    assert (update["seq"], update["path"]) == (number, name)
            whole = await http.get("/files/a.txt")
            assert (whole.status_code, whole.content) == (200, b"alpha")
            assert whole.headers["etag"] == f'"{sha256(b"alpha")}"'
            known = await http.get("/files/a.txt", headers={"If-None-Match": whole.headers["etag"]})
            assert (known.status_code, known.content) == (304, b"")
            part = await http.get("/files/a.txt", headers={"Range": "bytes=1-2"})
            assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"lp", "bytes 1-2/5")
            far = await http.get(f"/files/{FAR}")
            assert (far.status_code, far.content) == (200, b"below")
            bundle = await http.post("/bundle", json={"paths": [FAR, "a.txt"]})
            with tarfile.open(fileobj=io.BytesIO(bundle.content)) as archive:
                assert archive.getnames() == [FAR, "a.txt"]
            del http.headers["Authorization"]
            asked = ("/files", "/files/a.txt", "/events", "/metrics", "/", f"/files?token={TOKEN}", "/healthz")
            assert [(await http.get(path)).status_code for path in asked] == [401] * 6 + [200]

    body()


DEAF = "proxy_ignore_headers X-Accel-Buffering;"


@contextlib.contextmanager
def tls_before(server: Server, folder: Path, directives: str) -> Iterator[str]:
    """The URL of an nginx that ends TLS before a server, with these directives in its location."""
    location = f"location / {{ proxy_pass {server.url}; {directives} }}"
    lines = f"ssl_certificate cert.pem; ssl_certificate_key key.pem; {location}"
    with nginx.Nginx(lines, options="ssl", files=certified(folder)) as proxy:
        yield proxy.url


@behind_nginx
@pytest.mark.parametrize("directives", ["", f"{DEAF} proxy_buffering off;"], ids=["by the answer", "by a line"])
@on_a_loop
async def test_either_way_of_asking_lets_events_through(tmp_path: Path, directives: str) -> None:
    """The answers' header alone, or `proxy_buffering off` alone: an event arrives while the stream is open."""
    app = create_app(Feed())
    with serve(app) as server, tls_before(server, tmp_path, directives) as url:
        async with https(url, tmp_path) as http, http.stream("GET", "/events") as response:
            stream = await opened(response)
            for number in (1, 2, 3):
                app.feed.publish("a.txt")
                assert (await stream.update())["seq"] == number


@behind_nginx
@on_a_loop
async def test_without_being_asked_nginx_holds_events_back_where_it_ends_tls(tmp_path: Path) -> None:
    """With neither, not even the head has arrived when three events have left; all of it comes at the stream's end."""
    app = create_app(Feed())
    with serve(app) as server, tls_before(server, tmp_path, DEAF) as url:
        async with https(url, tmp_path) as http:
            asking = asyncio.create_task(http.send(http.build_request("GET", "/events?after=0"), stream=True))
            await until(lambda: app.traffic.held)
            for _ in range(3):
                app.feed.publish("a.txt")
                await until(lambda: app.traffic.delivered == app.feed.head)
            assert not asking.done()
            await asyncio.to_thread(server.stop)
            stream = await opened(await asking)
            assert [(await stream.update())["seq"] for _ in range(3)] == [1, 2, 3]
            assert await stream.rest() == b""


@behind_nginx
def test_a_mirror_keeps_a_copy_through_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the certificate in SSL_CERT_FILE a mirror lists and follows by https; without it, it says what it misses."""
    write(tmp_path, "files/a/b.txt", "beta")
    options = ("--token-file", tmp_path / "token")

    @on_a_loop
    async def body() -> None:
        async with operated(tmp_path) as (url, directory):
            async with command("lab.mirror", url, tmp_path / "none", *options) as process, asyncio.timeout(PATIENCE):
                assert process.stderr
                assert b"CERTIFICATE_VERIFY_FAILED" in await process.stderr.readline()
                process.send_signal(signal.SIGINT)
                assert (await ended(process))[::2] == (0, "")
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
            async with command("lab.mirror", url, tmp_path / "copy", *options) as process:
                await until(lambda: (tmp_path / "copy/a/b.txt").exists())
                await asyncio.to_thread(write, directory, "new.txt", "news")
                await until(lambda: files(tmp_path / "copy") == files(directory))
                process.send_signal(signal.SIGINT)
                status, _, said = await ended(process)
                assert status == 0
                assert re.fullmatch(r"(INFO up to date: .+\n)?", said)
        assert contents(tmp_path / "copy") == contents(tmp_path / "files")

    body()


def test_nginx_waits_longer_than_the_server_is_silent() -> None:
    """The manual's read timeout leaves room for more than two heartbeats."""
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", block("nginx"))
    assert int(seconds) > 2 * HEARTBEAT
