"""What others report of their fleets: each with what exactly was measured, how it is known, and where it says so.

    REPORTED ─▶ as_markdown, a table │ those with connections and processes or hosts ─▶ dots beside a plan

The words are the sources'. `opened` says whether the page itself was read for this list, or only what others quote.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """One system. `connections` at one time, on so many `cores`, where the source says so; else None."""

    name: str
    connections: float | None
    cores: float | None
    measured: str
    kind: str  # "counted", "load test", "said"
    source: str
    opened: bool = True


REPORTED = (
    Report("WhatsApp, 2012", 2_277_845, 24,
           "sockets open on one host by the kernel's own count; 24 cores, 41.9 % idle, 96 GiB", "counted",
           "https://blog.whatsapp.com/1-million-is-so-2011"),
    Report("Phoenix, 2015", 2_000_000, 40,
           "WebSockets of idle users in one chat room; 40 cores, 128 GB; the broadcast on joining was taken out",
           "load test", "https://phoenixframework.org/blog/the-road-to-2-million-websocket-connections"),
    Report("Netflix Zuul Push, 2018", 5_500_000, None,
           "clients connected at peak, WebSocket and SSE, over all regions; how many servers is not said", "said",
           "https://qconnewyork.com/ny2018/presentation/architectures-youve-always-wondered-about-presentation"),
    Report("LinkedIn, 2016", 200_000, None,
           '"hundreds of thousands" of SSE connections on one machine, in load tests with production traffic; here '
           "drawn as 200,000", "said",
           "https://engineering.linkedin.com/blog/2016/10/instant-messaging-at-linkedin--scaling-to-hundreds-of-thousands-"),
    Report("Stack Overflow, 2016", 500_000, None,
           '"about 500,000" WebSockets at peak, on the web tier: nine servers; exhausted ports had to be worked around',
           "said", "https://news.ycombinator.com/item?id=11117799"),
    Report("Slack, 2023", None, None,
           "about 16 million channels on a host at peak; a message is everywhere in the world within 500 ms", "said",
           "https://slack.engineering/real-time-messaging/"),
    Report("Uber RAMEN, 2022", None, None,
           "a heartbeat every 4 s over SSE, before the move to gRPC: constants of the design, not a load", "said",
           "https://www.uber.com/blog/ubers-next-gen-push-platform-on-grpc/"),
    Report("Shopify's live map, 2022", None, None,
           "SSE in place of polling with a floor of 10 s; data on the map within 21 s of its creation, end to end",
           "said", "https://shopify.engineering/server-sent-events-data-streaming"),
    Report("Wikimedia EventStreams, 2018", None, None,
           "offsets became invalid when Kafka was moved: clients “may lose a few messages”; limits on connections "
           "were asked for", "said", "https://phabricator.wikimedia.org/T185225"),
)  # fmt: skip


def as_markdown(reports: Sequence[Report] = REPORTED) -> str:
    """A table: who, what was measured, how it is known, and where it says so."""
    rows = ["| who | what exactly | known how | source |", "|---|---|---|---|"]
    for each in reports:
        read = "" if each.opened else "as reported in "
        rows.append(f"| {each.name} | {each.measured} | {each.kind} | {read}[source]({each.source}) |")
    return "\n".join(rows)
