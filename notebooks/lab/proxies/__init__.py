"""What stands between a client and its server: a cable under control, and proxies.

wire.py          a TCP relay that delays, jitters, limits, cuts and heals
nginx.py         the real nginx, started for a moment
redis_server.py  the real Redis, or Valkey, the same way
intermediary.py  that nginx with a configuration of its own, or an imitation where there is none
"""

from lab.proxies import nginx
from lab.proxies.intermediary import Between, intermediary
from lab.proxies.redis_server import RedisServer
from lab.proxies.wire import Wire

__all__ = [
    "Between",
    "RedisServer",
    "Wire",
    "intermediary",
    "nginx",
]
