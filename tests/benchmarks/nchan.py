"""nginx with the nchan module, the reference for fan-out: a process with a configuration of its own, and a publisher.

Debian: apt-get install nginx-light libnginx-mod-nchan. It listens on the port given and leaves nothing behind.
"""

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from servers.sources import synthetic_edits

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
CONFIGURATION = """
load_module {module};
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 15000; }}
http {{
  access_log off; keepalive_requests 100000000;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /events {{
      nchan_subscriber eventsource; nchan_channel_id updates; nchan_subscriber_first_message newest;
      nchan_eventsource_event update;
    }}
    location = /ws {{
      nchan_subscriber websocket; nchan_channel_id updates; nchan_subscriber_first_message newest;
    }}
    location = /updates {{
      nchan_subscriber longpoll; nchan_channel_id updates; nchan_subscriber_first_message newest;
      nchan_subscriber_timeout 30;
    }}
    location = /publish {{ nchan_publisher http; nchan_channel_id updates; nchan_message_buffer_length 100; }}
  }}
}}
"""


@contextlib.asynccontextmanager
async def nchan(port: int, rate: float, *, regular: bool) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run it, and publish the synthetic edits of our own servers, at the same times."""
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "nginx.conf")
        text = CONFIGURATION.format(module=MODULE, folder=folder, port=port)
        await asyncio.to_thread(configuration.write_text, text)
        process = await asyncio.create_subprocess_exec(
            *("nginx", "-p", folder, "-c", str(configuration)), stderr=asyncio.subprocess.DEVNULL
        )
        publishing = asyncio.create_task(publish(port, rate, regular))
        try:
            yield process
        finally:
            publishing.cancel()
            await asyncio.wait([publishing])
            process.kill()
            await process.wait()
            if not publishing.cancelled():
                publishing.result()  # it has failed


async def publish(port: int, rate: float, regular: bool) -> None:
    """POST each update at its time, over one connection."""
    async with asyncio.timeout(20):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.1)
    with contextlib.closing(writer):
        start = time.perf_counter()
        for seq, edit in enumerate(synthetic_edits(rate, regular=regular), start=1):
            await asyncio.sleep(start + edit.at - time.perf_counter())
            known = {"seq": seq, "path": edit.path, "change": edit.change, "size": edit.size, "sha256": edit.sha256}
            body = json.dumps(known | {"published": round(time.time(), 6)}).encode()
            writer.write(b"POST /publish HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
