"""The figures of long polling: what is drawn is what the runs have, and titles and texts are made from it."""

import functools

import numpy as np
import pytest

from lab import theory
from lab.bench.result import VIRTUAL, Delivery, Publication, Request, Run
from lab.bench.schedule import Schedule
from lab.figures import Picture, holding


def run(
    moments: dict[int, list[float]],
    published: list[float],
    came: set[int],
    *,
    seconds: float = 10.0,
    label: str = "long polling",
) -> Run:
    """Requests by client, each 0.05 s long, and which of the updates (numbered from 1) came to client 0."""
    requests = [Request(n, at, at + 0.05, 0, False) for n, starts in moments.items() for at in starts]
    return Run(
        model="long polling",
        label=label,
        mode=VIRTUAL,
        clients=len(moments),
        schedule=Schedule.at(published, seconds),
        begin=0.0,
        end=seconds,
        server_requests=len(requests),
        published=[Publication(n, at, at, "a") for n, at in enumerate(published, 1)],
        all_requests=sorted(requests, key=lambda request: request.start),
        all_deliveries=[Delivery(0, n, published[n - 1] + 0.05) for n in sorted(came)],
    )


def title(picture: Picture) -> str:
    return " ".join(picture.get_suptitle().split())


def test_a_dark_square_for_every_loss() -> None:
    """Each update has a square, in the order of publication, and those that never came are black."""
    some = run({0: [1.0]}, [1.0, 2.0, 3.0, 4.0, 5.0], {1, 3, 4}, label="some")
    none = run({0: [1.0]}, [1.0, 2.0, 3.0], {1, 2, 3}, label="none")
    picture = holding.loss_grid(some, none, columns=2)
    [axes] = picture.axes
    colors = [line.get_color() for line in axes.lines]
    assert [color == "black" for color in colors] == [False, True, False, False, True, False, False, False]
    places = [tuple(np.concatenate(np.array(line.get_data())).tolist()) for line in axes.lines]
    assert places[:5] == [(0, 0.5), (1, 0.5), (0, 1.5), (1, 1.5), (0, 2.5)]
    assert title(picture) == "some: 2 of 5 updates lost; none: 0 of 3 updates lost"
    assert title(picture) in picture.alt


def test_who_asks_within_a_tenth_of_a_second_asks_together() -> None:
    """A crowd is counted wherever it begins, not by the bins of a clock: a hundred within 0.1 s are a hundred."""
    herd = run({n: [2.05 + 0.0009 * n] for n in range(100)}, [5.0], set())
    assert holding.together(herd, 0, 10) == 100
    apart = run({n: [2.0 + 0.11 * n] for n in range(10)}, [5.0], set())
    assert holding.together(apart, 0, 10) == 1
    assert holding.together(apart, 9, 10) == 0


def test_a_crowd_is_as_high_as_its_number() -> None:
    """The number beside an event is the height of what is drawn there, and stands in the text."""
    herd = run({n: [2.0 + 0.001 * n, 6.0 + 0.5 * n] for n in range(8)}, [5.0], set(), seconds=20.0)
    picture = holding.crowds({"all": herd}, {2.0: "start", 8.0: "later"}, start=0, end=20)
    [axes] = picture.axes
    heights = [segment[1][1] - segment[0][1] for segment in axes.collections[0].get_segments()]  # type: ignore[attr-defined]
    assert max(heights) == 8
    assert "all 8, 1." in picture.alt
    assert "start (2 s), later (8 s)" in picture.alt
    assert {"8", "1", "start", "later", "all"} <= {text.get_text() for text in axes.texts}
    assert title(picture) == "The most that ask within 0.1 s of one another, of 8 clients"


@pytest.mark.parametrize(("gap", "hold"), [(0.1, 9.5), (0.04, 30.0)])
def test_the_limits_of_the_rate_are_said(gap: float, hold: float) -> None:
    """Title and text name the two limits, of the gap and the hold that are drawn."""
    law = functools.partial(theory.long_polling_request_rate, gap=gap, hold=hold)
    picture = holding.asked_by_rate(law, {1.0: 0.93}, gap, hold)
    said = f"{1 / (gap + hold):.2g} requests a second, one each hold, to {1 / gap:.3g}, one each round trip"
    assert title(picture) == f"From {said}"
    assert "Measured at 1/s: 0.93" in picture.alt
    drawn = picture.axes[0].lines[0].get_ydata()
    assert 1 / (gap + hold) <= np.min(drawn) < np.max(drawn) <= 1 / gap


def test_empty_answers_are_the_laws() -> None:
    """The curve is requests that end empty, and the title says how many there are at 25 s."""
    picture = holding.empty_answers(60, 0.025, {10.0: run({0: [1.0, 2.0]}, [], set())})
    x, y = (np.asarray(data) for data in picture.axes[0].lines[0].get_data())
    rate, gap = 1 / 60, 0.05
    at_25 = 3600 * theory.long_polling_request_rate(rate, gap, 25.0) * np.exp(-rate * (gap + 25))
    assert np.interp(25, x, y) == pytest.approx(at_25, rel=1e-3)
    assert title(picture) == f"60 updates an hour: {at_25:.0f} empty answers if H is 25 s"
    assert "With 10 s there were 2." in picture.alt
    assert holding.empty_answers(60, 0.025).alt.endswith("if H is 25 s.")
