"""What the laws say of a situation beforehand: requests, delays, losses; None where no law of the course covers it."""

from typing import NamedTuple

from lab.tab.situation import Situation
from lab.theory.long_polling import (
    JITTER,
    long_polling_lost_share,
    long_polling_mean_delay,
    long_polling_request_rate,
)
from lab.theory.short_polling import paced, polling_mean_delay


class Forecast(NamedTuple):
    """Requests of all clients of a model while the schedule lasts, the mean delay (s), the share that is lost.

    `lost_without_cursor` is the share that would be lost by clients that ask for "now" each time.
    """

    requests: float | None
    mean_delay: float | None
    lost: float
    lost_without_cursor: float | None


def forecast(situation: Situation, model: str) -> Forecast:
    """The laws for one model's clients; over a disturbed network only that a cursor loses nothing."""
    s = situation
    without = None
    if model == "long-polling" and s.calm:
        without = float(long_polling_lost_share(float(s.rate), 2 * s.delay, s.hold))
    if not s.calm:
        return Forecast(None, None, 0.0, without)
    if model == "short-polling":
        requests = s.clients * s.seconds / float(paced(s.interval, s.delay))
        return Forecast(requests, float(polling_mean_delay(s.interval, s.delay)), 0.0, without)
    if model == "long-polling":
        try:
            rate = long_polling_request_rate(float(s.rate), 2 * s.delay, s.hold, 0.0, JITTER)
            mean = float(long_polling_mean_delay(float(s.rate), s.delay, s.hold, 0.0, JITTER))
        except ValueError:  # beyond the law's domain
            return Forecast(None, None, 0.0, without)
        return Forecast(s.clients * s.seconds * float(rate), mean, 0.0, without)
    return Forecast(0.0, s.delay, 0.0, without)  # who is connected asks no more
