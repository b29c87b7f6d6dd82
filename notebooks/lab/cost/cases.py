"""What others chose, and where they say so: twelve systems in public, beside what `recommend` says of them.

Only the choice and its source are facts. The requirements are assumptions of ours, of the order of magnitude that such
a system has, and each difference between the two is said in a sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lab.cost.advice import MQTT, Threshold, choice
from lab.cost.requirements import Requirements
from lab.theory import LONG, SHORT, SOCKET, STREAM, Prices, Units


@dataclass(frozen=True)
class Case:
    """A system: what was chosen there, in the source's words as far as it says, and what we assume it needs."""

    name: str
    chosen: str
    says: str
    source: str
    requirements: Requirements
    differs: str = ""


CASES = (
    Case(
        "GitHub, events of repositories", SHORT, "polled with an ETag, at the pace of X-Poll-Interval",
        "https://docs.github.com/en/rest/activity/events",
        Requirements(100_000, 0.001, 60),
    ),
    Case(
        "Dropbox, changes of a folder", LONG, "list_folder/longpoll, with a cursor",
        "https://www.dropbox.com/developers/documentation/http/documentation#files-list_folder-longpoll",
        Requirements(1_000_000, 0.001, 2.0, streams_pass=False),
    ),
    Case(
        "Syncthing, events of a node", LONG, "/rest/events?since=ID&timeout=60",
        "https://docs.syncthing.net/dev/events.html",
        Requirements(2, 1.0, 0.5, rtt=0.001),
        "for two clients on one machine a stream would be as simple; a long poll is a loop around one request",
    ),
    Case(
        "Wikimedia, every edit of every wiki", STREAM, "EventStreams, with Last-Event-ID",
        "https://wikitech.wikimedia.org/wiki/Event_Platform/EventStreams",
        Requirements(1000, 20.0, 0.5, rtt=0.1),
    ),
    Case(
        "Kubernetes, watch", STREAM, "list, then a response that never ends: SSE's way, in a format of its own",
        "https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes",
        Requirements(5000, 1.0, 0.5, rtt=0.002),
    ),
    Case(
        "Shopify, live map of Black Friday", STREAM, "SSE in place of polling, which had a floor of 10 s",
        "https://shopify.engineering/server-sent-events-data-streaming",
        Requirements(10_000, 1.0, 0.9, followers="browsers", http2=True),
    ),
    Case(
        "LinkedIn, messages", STREAM, "SSE first, for it is plain HTTP; WebSocket when possible",
        "https://engineering.linkedin.com/blog/2016/10/instant-messaging-at-linkedin--scaling-to-hundreds-of-thousands-",
        Requirements(100_000, 0.01, 1.0, upstream=0.2, followers="browsers", http2=True),
    ),
    Case(
        "LaunchDarkly, flags by its relay", STREAM, "about 1,800 event streams, unevenly spread after a deploy",
        "https://github.com/launchdarkly/ld-relay/issues/92",
        Requirements(1800, 0.001, 0.5),
    ),
    Case(
        "Stack Overflow, notifications", SOCKET, "about 500,000 WebSockets at peak",
        "https://nickcraver.com/blog/2016/02/17/stack-overflow-the-architecture-2016-edition/",
        Requirements(500_000, 0.01, 1.0, followers="browsers"),
        "the news is one-way, so the simpler stream will do, as long as tabs are few or the way is HTTP/2",
    ),
    Case(
        "Discord, gateway", SOCKET, "events, heartbeats, presence and requests on one WebSocket",
        "https://discord.com/developers/docs/events/gateway",
        Requirements(100_000, 1.0, 0.3, upstream=0.5),
    ),
    Case(
        "Gitea, notifications in many tabs", SOCKET, "replaced SSE, for six connections do not do for many tabs",
        "https://github.com/go-gitea/gitea/pull/36965",
        Requirements(2000, 0.01, 0.5, followers="browsers", tabs=7),
    ),
    Case(
        "Hotstar, feed beside a live match", MQTT, "MQTT for 50 million sockets, one message a second",
        "https://hasgeek.com/rootconf/2020-delhi/sub/pubsub-realtime-messaging-service-hotstar-LP7A7b7ZVu6ibfgYFAcvXZ",
        Requirements(1_000_000, 1.0, 1.0),
        "an app that is awake and plays a video can hold a stream; MQTT came with a broker, and spares the battery",
    ),
)  # fmt: skip


def chosen(
    units: Mapping[str, Units] | None = None, prices: Prices | None = None, threshold: Threshold | None = None
) -> dict[str, tuple[str, str, str]]:
    """By case: what was chosen there, what we would say, and the sentence on the difference, if there is one."""
    table = {}
    for case in CASES:
        advice = choice(case.requirements, units, prices, threshold) or "none"
        why = "" if advice == case.chosen else case.differs or "cost decides otherwise at these prices"
        table[case.name] = (case.chosen, advice, why)
    return table


def as_markdown(table: Mapping[str, tuple[str, str, str]]) -> str:
    """The table of `chosen`, with what each source says and where."""
    lines = ["| who | what they say | they chose | we would say |", "|---|---|---|---|"]
    for case in CASES:
        theirs, ours, why = table[case.name]
        lines.append(
            f"| {case.name} | [{case.says}]({case.source}) | {theirs} | **{ours}**{f': {why}' if why else ''} |"
        )
    return "\n".join(lines)
