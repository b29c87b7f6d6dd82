"""What stands between a client and its server: a cable under control, and proxies; and what stands behind them.

wire.py          a TCP relay that delays, jitters, limits, cuts and heals
nginx.py         the real nginx, started for a moment
redis_server.py  the real Redis, or Valkey, the same way
intermediary.py  that nginx with a configuration of its own, or before several servers; an imitation where there is none
browser.py       how many streams of a page a real browser opens
"""

from lab.proxies import browser, nginx
from lab.proxies.intermediary import Between, balancer, intermediary
from lab.proxies.redis_server import RedisServer
from lab.proxies.wire import Wire

__all__ = [
    "Between",
    "RedisServer",
    "Wire",
    "balancer",
    "browser",
    "intermediary",
    "nginx",
]
