"""The figures: what they draw is what the run holds, all of it legible, and told in words."""

import base64
import itertools
import json
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbconvert
import nbformat
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray

from lab import figures, theory
from lab.bench.result import VIRTUAL, Delivery, Publication, Request, Run
from lab.bench.schedule import Schedule
from lab.figures import OTHER, STYLES, Picture, blank, delay_ecdf, request_bars, show, timeline
from lab.figures.style import GREY, HIDDEN, INK, letters
from lab.teaching.client import Client

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB: how the three kinds of colour blindness see.
COLOUR_BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}


def polled(
    interval: float = 0.5, *, length: float = 8, lose: float = 0, model: str = "short polling", **names: str
) -> Run:
    """A run of three clients that poll on a grid, computed; a share `lose` of the updates passes them by."""
    rng = np.random.default_rng(1)
    schedule = Schedule.poisson(2, length, seed=3)
    published = [Publication(n, edit.at, edit.at, edit.path) for n, edit in enumerate(schedule.edits, 1)]
    requests, deliveries = list[Request](), list[Delivery]()
    for client in range(3):
        before, at = -1.0, -interval * (client + 1) / 4
        while at < length + interval:
            news = [update for update in published if before < update.at <= at and rng.random() >= lose]
            requests.append(Request(client, at, at + 0.004, len(news), False))
            deliveries += [Delivery(client, update.seq, at + 0.003) for update in news]
            before, at = at, at + interval
    return complete(schedule, published, requests, deliveries, "short polling", **names)


def pushed(delay: float = 0.003, *, length: float = 8, model: str = "SSE", **names: str) -> Run:
    """A run of three clients that hold a stream on which every update takes `delay` seconds."""
    schedule = Schedule.poisson(2, length, seed=3)
    published = [Publication(n, edit.at, edit.at, edit.path) for n, edit in enumerate(schedule.edits, 1)]
    requests = [Request(client, -0.5 + 0.1 * client, length + 0.5, len(published), False) for client in range(3)]
    deliveries = [Delivery(client, update.seq, update.at + delay) for update in published for client in range(3)]
    return complete(schedule, published, requests, deliveries, model, **names)


def complete(
    schedule: Schedule,
    published: Sequence[Publication],
    requests: Sequence[Request],
    deliveries: Sequence[Delivery],
    model: str,
    label: str = "",
) -> Run:
    return Run(
        model=model,
        label=label or model,
        mode=VIRTUAL,
        clients=3,
        schedule=schedule,
        begin=min((request.start for request in requests), default=0.0),
        end=schedule.seconds + 0.5,
        server_requests=len(requests),
        published=published,
        all_requests=sorted(requests, key=lambda request: request.start),
        all_deliveries=sorted(deliveries, key=lambda delivery: delivery.at),
    )


def four() -> list[Run]:
    return [polled(), pushed(0.005, model="long polling"), pushed(0.002, model="WebSocket"), pushed(0.003)]


SILENT = complete(Schedule.at([], 2), [], [Request(0, 0.0, 2.0, 0, False)], [], "SSE")
DEAF = complete(Schedule.at([1], 2), [Publication(1, 1, 1, "a")], [Request(0, 0.0, 2.0, 0, False)], [], "SSE")
Draw = Callable[..., Picture]
DRAW: list[Draw] = [timeline, delay_ecdf, request_bars]
RUNS = {
    "one": [polled()],
    "four": four(),
    "sweep": [polled(interval, label=f"T = {interval:g} s") for interval in (0.25, 0.5, 1.0)],
    "long": [polled(length=60)],
    "lossy": [polled(lose=0.4, label="without a cursor"), pushed()],
    "busy": [replace(run, floor=1.0) for run in four()],
    "nothing published": [SILENT],
    "nothing delivered": [DEAF],
    "long names": [
        pushed(label="server-sent events with a long name"),
        polled(label="polling, answered at once"),
    ],
}


def luminance(color: str) -> float:
    """WCAG 2.2, "relative luminance"."""
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, "contrast ratio"."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def linear(color: str) -> NDArray[np.float64]:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab_color(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* (D65) of linear RGB, in which distances are what an eye sees."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def texts(figure: Figure) -> list[Text]:
    """What is written on a figure, once it is laid out."""
    figure.draw_without_rendering()
    unseen: set[Text] = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        unseen |= {tick.label1 for tick in ticks if not low <= tick.get_loc() <= high}
    found = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in unseen]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    """A notebook, executed: a figure as a cell's last line, one of pyplot's own, and one without a text."""
    cells = [
        "from lab.figures import blank, show\n"
        "picture, axes = blank('x & y', 'x (s)', 'y (s)', alt='A line that <rises> & \"falls\".')\n"
        "axes.plot([1, 2])\npicture",
        "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\nshow(figure, alt='An empty frame.')",
        "try:\n    show(figure)\nexcept ValueError as error:\n    print(error)",
    ]
    book: nbformat.NotebookNode = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    Client(book, timeout=60, kernel_name="python3").execute()
    return book


class TestStyles:
    def test_every_model_has_its_own_style(self) -> None:
        """No two models share a colour, a line or a marker."""
        assert list(STYLES) == ["short polling", "long polling", "WebSocket", "SSE"]
        for which in ("color", "line", "marker"):
            assert len({getattr(style, which) for style in STYLES.values()}) == 4

    @pytest.mark.parametrize("model", STYLES)
    def test_contrast(self, model: str) -> None:
        """Lines and their labels stand out from white by at least 3:1 (WCAG 2.2, 1.4.11)."""
        assert contrast(STYLES[model].color, "white") >= 3

    @pytest.mark.parametrize("color", [*(style.color for style in [*STYLES.values(), OTHER]), INK, GREY])
    def test_letters(self, color: str) -> None:
        """What is written in a colour of the course can be read: 4.5:1 against white (WCAG 2.2, 1.4.3)."""
        assert contrast(letters(color), "white") >= 4.5

    def test_letters_keep_their_hue(self) -> None:
        """A text in a model's colour is nearer to that model's line than to any other's."""
        for name, style in STYLES.items():
            seen = lab_color(linear(letters(style.color)))
            apart = {other: np.linalg.norm(seen - lab_color(linear(each.color))) for other, each in STYLES.items()}
            assert min(apart, key=lambda other: apart[other]) == name

    def test_greys(self) -> None:
        """Printed in grey, any two models differ by a fifth in brightness, besides their lines and markers."""
        for one, other in itertools.combinations(STYLES.values(), 2):
            assert contrast(one.color, other.color) >= 1.2

    @pytest.mark.parametrize("kind", COLOUR_BLINDNESS)
    def test_colour_blindness(self, kind: str) -> None:
        """Whatever colours an eye confuses, any two models stay apart by ΔE 25."""
        seen = [lab_color(np.array(COLOUR_BLINDNESS[kind]) @ linear(style.color)) for style in STYLES.values()]
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) >= 25

    def test_a_line_of_ones_own_has_the_courses_colours(self) -> None:
        """Lines that name no colour take the four of the models."""
        cycle = mpl.rcParams["axes.prop_cycle"].by_key()
        assert cycle.keys() == {"color"}
        assert set(cycle["color"]) == {style.color for style in STYLES.values()}

    def test_an_unknown_model_is_grey(self) -> None:
        """Anything that is none of the four gets a colour of none of them."""
        assert figures.style("carrier pigeon") == OTHER
        assert OTHER.color not in {style.color for style in STYLES.values()}


class TestEveryFigure:
    @pytest.mark.parametrize("draw", DRAW)
    @pytest.mark.parametrize("case", RUNS)
    def test_all_that_is_written_can_be_read(self, draw: Draw, case: str) -> None:
        """Every text lies within the picture, none on another, none below 9 points or 4.5:1 against white."""
        picture = draw(RUNS[case])
        written = texts(picture)
        assert [text.get_text() for text in written if contrast(str(text.get_color()), "white") < 4.5] == []
        boxes = [text.get_window_extent() for text in written]
        whole = picture.bbox
        for text, box in zip(written, boxes, strict=True):
            assert float(text.get_fontsize()) >= 9, text.get_text()
            assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1, text.get_text()  # noqa: PT018  # one box
            assert box.y0 >= whole.y0 - 1 and box.y1 <= whole.y1 + 1, text.get_text()  # noqa: PT018  # one box
        for (one, a), (other, b) in itertools.combinations(zip(written, boxes, strict=True), 2):
            assert not a.padded(-1.5).overlaps(b.padded(-1.5)), (one.get_text(), other.get_text())

    @pytest.mark.parametrize("draw", DRAW)
    def test_title_and_text_tell_the_finding(self, draw: Draw) -> None:
        """Without help the title has a number of the run, and the text says what every run did."""
        runs = four()
        picture = draw(runs)
        assert any(character.isdigit() for character in picture.get_suptitle())
        for run in runs:
            assert f"{run.requests:,} request" in picture.alt
            assert run.label.lower() in picture.alt.lower()
        assert VIRTUAL in picture.alt
        assert VIRTUAL in [text.get_text() for text in texts(picture)]

    @pytest.mark.parametrize("draw", DRAW)
    def test_the_caller_may_say_it_better(self, draw: Draw) -> None:
        """A title and a text that are given are used as they are."""
        picture = draw(polled(), title="Polling is slow", alt="A slow thing.")
        assert (picture.get_suptitle(), picture.alt) == ("Polling is slow", "A slow thing.")

    @pytest.mark.parametrize("draw", DRAW)
    def test_losses_come_first(self, draw: Draw) -> None:
        """Updates that never came are in the text of every figure."""
        run = polled(lose=0.4)
        assert f"{run.expected - run.lost} of {run.expected} deliveries came" in draw(run).alt

    @pytest.mark.parametrize("draw", DRAW)
    def test_a_busy_machine_is_said(self, draw: Draw) -> None:
        """A run that is not to be believed says so on the figure and in its text."""
        picture = draw(RUNS["busy"])
        assert any("too busy to be believed" in text.get_text() for text in texts(picture))
        assert "too busy to be believed" in picture.alt

    @pytest.mark.parametrize("draw", DRAW)
    def test_no_run(self, draw: Draw) -> None:
        """There is nothing to draw without a run."""
        with pytest.raises(ValueError, match="no run"):
            draw([])

    @pytest.mark.parametrize("suffix", [".svg", ".png"])
    def test_the_same_file_again(self, tmp_path: Path, suffix: str) -> None:
        """A figure drawn and saved twice is the same to the byte, so that it can be committed."""
        saved = []
        for name in ("one", "two"):
            timeline(four(), lanes=1).save(tmp_path / (name + suffix))
            saved.append((tmp_path / (name + suffix)).read_bytes())
        assert saved[0] == saved[1]

    def test_svg(self, tmp_path: Path) -> None:
        """The README's picture is well-formed, carries its text, and needs no fonts."""
        picture = timeline(four(), lanes=1)
        picture.save(tmp_path / "timeline.svg")
        root = xml.etree.ElementTree.parse(tmp_path / "timeline.svg").getroot()
        described = root.find(".//{http://purl.org/dc/elements/1.1/}description")
        assert described is not None
        assert described.text == picture.alt
        assert not root.findall(".//{http://www.w3.org/2000/svg}text")


class TestTitles:
    def test_no_word_stands_alone(self) -> None:
        """A title that needs two lines gets two of about the same length."""
        first, second = delay_ecdf(polled(), title="word " * 14).get_suptitle().splitlines()
        assert abs(len(first) - len(second)) <= 5

    def test_a_unit_stays_with_its_number(self) -> None:
        """A line never ends between a number and its unit."""
        for width in range(30):
            title = delay_ecdf(polled(), title="w" * width + " 7.85 s 40 ms 12 %" * 5).get_suptitle()
            assert not any(line[0] in "sm%" for line in title.splitlines())

    def test_a_short_title_is_one_line(self) -> None:
        """A title that fits stays whole."""
        assert delay_ecdf(polled(), title="Polling is slow").get_suptitle() == "Polling is slow"


class TestTimeline:
    def markers(self, axes: Axes, marker: str) -> list[tuple[float, float]]:
        lines = [line for line in axes.lines if line.get_marker() == marker]
        return [(float(x), float(y)) for line in lines for x, y in np.asarray(line.get_xydata())]

    def held(self, axes: Axes) -> list[Any]:
        return [path for spans in axes.collections if spans.get_alpha() == 0.22 for path in spans.get_paths()]

    def test_a_dot_for_every_delivery(self) -> None:
        """Each delivery is a dot at its moment, each update a mark at the top."""
        run = polled()
        [axes] = timeline(run).axes
        dots = sorted(x for x, _ in self.markers(axes, STYLES[run.model].marker))
        assert dots == pytest.approx(sorted(delivery.at for delivery in run.all_deliveries))
        assert [x for x, _ in self.markers(axes, "v")] == pytest.approx([update.at for update in run.published])

    def test_a_cross_for_every_loss(self) -> None:
        """What a client never got is a cross in its lane, at the moment of the update, and explained below."""
        run = polled(lose=0.4)
        picture = timeline(run)
        assert len(self.markers(picture.axes[0], "x")) == run.lost > 0
        assert "lost" in [text.get_text() for text in texts(picture)]

    def test_fewer_lanes(self) -> None:
        """With `lanes` only so many clients are drawn, and the numbers are still those of all."""
        run = polled()
        picture = timeline(run, lanes=1)
        dots = self.markers(picture.axes[0], STYLES[run.model].marker)
        assert len(dots) == len([delivery for delivery in run.all_deliveries if delivery.client == 0])
        assert any(f"3 clients: {run.requests} requests" in text.get_text() for text in texts(picture))

    def test_held_requests_are_spans(self) -> None:
        """A stream is one span per client, from its request to its end; polls are too short for one."""
        run = pushed()
        [axes] = timeline(run).axes
        spans = sorted(path.get_extents().intervalx.tolist() for path in self.held(axes))
        for span, request in zip(spans, run.all_requests, strict=True):
            assert span == pytest.approx([request.start, request.end])
        assert not self.held(timeline(polled()).axes[0])

    def test_a_stroke_for_every_request(self) -> None:
        """Each request is a stroke at its beginning; one that brought nothing is thinner and paler."""
        run = polled()
        strokes: dict[bool, list[float]] = {}
        for lines in timeline(run).axes[0].collections:
            if isinstance(lines, LineCollection) and lines.get_alpha():
                useful = lines.get_alpha() == 1 and max(np.atleast_1d(lines.get_linewidth())) > 2
                strokes[useful] = sorted(float(np.asarray(segment)[0, 0]) for segment in lines.get_segments())
        for useful in (True, False):
            asked = [request.start for request in run.all_requests if (request.updates > 0) is useful]
            assert strokes[useful] == pytest.approx(sorted(asked))

    def test_a_long_run_shows_its_beginning(self) -> None:
        """When there are too many updates to be told apart, the figure ends earlier and says so."""
        run = polled(length=60)
        [axes] = timeline(run).axes
        shown = [update for update in run.published if update.at <= axes.get_xlim()[1]]
        assert figures.MOST_UPDATES <= len(shown) < 2 * figures.MOST_UPDATES < len(run.published)
        assert "of 60 s" in axes.get_xlabel()

    def test_a_part_of_the_time(self) -> None:
        """`start` and `end` choose what is shown; with `start` alone it is as much as can be told apart."""
        run = polled(length=60)
        [axes] = timeline(run, start=20, end=30).axes
        assert axes.get_xlim() == pytest.approx((20 - 10 / 80, 30 + 10 / 80))
        assert axes.get_xlabel() == "time (s)"
        low, high = timeline(run, start=20).axes[0].get_xlim()
        shown = [update for update in run.published if low <= update.at <= high]
        assert figures.MOST_UPDATES <= len(shown) < 2 * figures.MOST_UPDATES

    def test_many_deliveries_at_once(self) -> None:
        """A batch is fanned out within its lane, however large, so that each line of waiting can be seen."""
        run = polled(20.0)
        [axes] = timeline(run, lanes=1).axes
        heights = sorted(y for _, y in self.markers(axes, STYLES[run.model].marker))
        assert len(set(heights)) == len(heights) == len(run.published)
        assert heights[-1] - heights[0] < 1


class TestDelays:
    def test_the_curve_is_the_share_of_expected_deliveries(self) -> None:
        """A step of one delivery at each delay; with losses the curve ends below 100 %."""
        run = polled(lose=0.4)
        [axes] = delay_ecdf(run).axes
        x, y = np.asarray(axes.lines[0].get_xdata(), float), np.asarray(axes.lines[0].get_ydata(), float)
        assert x[1:-1] == pytest.approx(np.sort(run.delays) * 1000)
        assert y[-1] == pytest.approx(100 * (1 - run.lost / run.expected))
        assert axes.get_xlabel() == "delay (ms)"

    def test_the_prediction_is_drawn_in(self) -> None:
        """The law stands in the measured figure, on the same axes, with its name."""
        run = polled(1.0)
        picture = delay_ecdf(run, {"uniform on (0, T)": lambda delay: theory.polling_delay_cdf(delay, 1.0)})
        [axes] = picture.axes
        [law] = [line for line in axes.lines if line.get_label() == "uniform on (0, T)"]
        unit = 1 if axes.get_xlabel() == "delay (s)" else 1000
        x = np.asarray(law.get_xdata(), float) / unit
        assert np.asarray(law.get_ydata(), float) == pytest.approx(100 * theory.polling_delay_cdf(x, 1.0))
        assert "uniform on (0, T)" in [text.get_text() for text in texts(picture)]
        assert len(delay_ecdf(run, lambda delay: theory.polling_delay_cdf(delay, 1.0)).axes[0].lines) == 2

    @pytest.mark.parametrize("case", ["four", "lossy", "long names", "two polls"])
    def test_no_name_stands_on_a_laws(self, case: str) -> None:
        """On a logarithmic axis a law's name is where no curve's is."""
        two = [polled(label="listing each second"), polled(label="polling each second"), pushed()]
        runs = RUNS.get(case, two)
        picture = delay_ecdf(runs, {"law": lambda delay: theory.polling_delay_cdf(delay, 1.0)})
        assert picture.axes[0].get_xscale() == "log"
        [law] = [text for text in texts(picture) if text.get_text() == "law"]
        others = [text.get_window_extent() for text in texts(picture) if text is not law]
        assert not any(law.get_window_extent().padded(-1.5).overlaps(box) for box in others)

    def test_far_apart_is_logarithmic(self) -> None:
        """Medians a factor of 20 apart need a logarithmic axis, near ones do not."""
        assert delay_ecdf(four()).axes[0].get_xscale() == "log"
        assert delay_ecdf(RUNS["sweep"]).axes[0].get_xscale() == "linear"


class TestRequestBars:
    def test_bars_are_counts(self) -> None:
        """Each run's bar is its useful requests, then its wasted ones, with both numbers beside it."""
        runs = four()
        picture = request_bars(runs)
        widths = [round(bar.get_width()) for bar in picture.axes[0].patches if isinstance(bar, Rectangle)]
        assert widths == [number for run in runs for number in (run.useful, run.wasted)]
        assert f"{runs[0].useful} useful + {runs[0].wasted} for nothing" in [text.get_text() for text in texts(picture)]

    def test_prediction(self) -> None:
        """The law's number is a line across the bar, and written beside it."""
        run = polled()
        picture = request_bars(run, {"short polling": 48.0})
        [line] = picture.axes[0].lines
        assert set(np.asarray(line.get_xdata(), float)) == {48.0}
        assert any("predicted: 48" in text.get_text() for text in texts(picture))


class TestShow:
    def images(self, notebook: nbformat.NotebookNode) -> list[Any]:
        return [out for cell in notebook.cells for out in cell.outputs if "image/png" in out.get("data", {})]

    def test_every_image_has_its_text(self, notebook: nbformat.NotebookNode) -> None:
        """Each figure is in the notebook once, as a PNG whose metadata has the alternative text."""
        images = self.images(notebook)
        assert [image.metadata["image/png"]["alt"] for image in images] == [
            'A line that <rises> & "falls".',
            "An empty frame.",
        ]
        assert all(base64.b64decode(image.data["image/png"]).startswith(b"\x89PNG") for image in images)
        assert all(len(image.data["image/png"]) < 60_000 for image in images)
        assert "stderr" not in json.dumps(notebook)

    def test_a_page_can_be_heard(self, notebook: nbformat.NotebookNode) -> None:
        """On the page that nbconvert makes, the text follows the picture: hidden from the eye, there for a reader."""
        exporter: Any = nbconvert.HTMLExporter  # it has no types
        page, _ = exporter().from_notebook_node(notebook)
        assert page.count("Figure: An empty frame.") == 1
        assert 'Figure: A line that &lt;rises&gt; &amp; "falls".' in page
        assert "clip-path:inset(50%)" in page
        assert "display:none" not in HIDDEN  # would hide it from everybody

    def test_a_figure_needs_a_text(self, notebook: nbformat.NotebookNode) -> None:
        """A figure without a sentence about it is refused."""
        assert "say" in notebook.cells[2].outputs[0].text

    def test_save_and_blank_share_the_look(self) -> None:
        """A figure of one's own has the course's letters and size, and its text."""
        picture, axes = blank("A title", "x (s)", "y (1/s)", height=3, alt="Nothing yet.")
        assert (axes.get_xlabel(), axes.get_ylabel(), picture.alt) == ("x (s)", "y (1/s)", "Nothing yet.")
        assert picture.get_figwidth() == figures.WIDTH
        with pytest.raises(ValueError, match="what it shows"):
            show(blank("A title", "x", "y")[0])


def held_poll() -> Run:
    """A client that long-polls: one answer that brought an update, then a request that is open at the end."""
    published = [Publication(1, 1.0, 1.0, "a")]
    requests = [Request(0, -0.1, 1.1, 1, False), Request(0, 1.1, 2.5, 0, False)]
    return replace(complete(Schedule.at([1], 2), published, requests, [Delivery(0, 1, 1.1)], "long polling"), clients=1)


class TestWhatIsSaid:
    @pytest.mark.parametrize("draw", [timeline, request_bars])
    def test_what_is_still_open_is_not_for_nothing(self, draw: Draw) -> None:
        """A request that the end of the observation cut off is told apart from one for nothing."""
        picture = draw(held_poll())
        written = " ".join(text.get_text() for text in texts(picture))
        assert "1 still open" in written
        assert "0 of them for nothing, 1 still open" in picture.alt
        assert "1 for nothing" not in written

    def test_the_servers_view_has_gaps(self) -> None:
        """With `transit` a bar begins when the request arrives, and ends when the answer leaves."""
        [axes] = timeline(held_poll(), transit=0.1).axes
        spans = sorted(path.get_extents().intervalx.tolist() for path in TestTimeline().held(axes))
        assert spans[0] == pytest.approx([0.0, 1.0])
        assert spans[1] == pytest.approx([1.2, 2.5])

    def test_clients_that_are_left_out_are_said(self) -> None:
        """Where not all clients have a lane, the figure says how many do."""
        written = " ".join(text.get_text() for text in texts(timeline(polled(), lanes=2)))
        assert "2 of them drawn" in written
        assert "drawn" not in " ".join(text.get_text() for text in texts(timeline(polled())))

    def test_a_part_of_the_time_is_shaded_and_named(self) -> None:
        """What happens in a part of the time stands in the key."""
        assert "overloaded" in [text.get_text() for text in texts(timeline(polled(), shade={"overloaded": (2, 4)}))]

    def test_a_logarithmic_axis_says_so(self) -> None:
        """Nobody has to see it from the ticks."""
        assert "logarithmic" in delay_ecdf(four()).axes[0].get_xlabel()
        assert "logarithmic" not in delay_ecdf(polled()).axes[0].get_xlabel()

    def test_a_curves_name_is_never_cut_off(self) -> None:
        """A name goes to the left of its curve where the right has no room, however long it is."""
        for run in (pushed(label="long polling, on a very long way"), polled(label="short polling without a cursor")):
            picture = delay_ecdf(run)
            for text in texts(picture):
                assert text.get_window_extent().x1 <= picture.bbox.x1 + 1, text.get_text()


class TestCurves:
    def test_points_are_drawn_and_heard(self) -> None:
        """Every point stands beside its name, and in the text with its number."""
        picture = figures.law_and_points("T", "x", "y (s)", {"x/2": ([0, 4], [0, 2])}, {"one": (1, 0.5), "two": (2, 1)})
        assert {"one", "two", "x/2"} <= {text.get_text() for text in texts(picture)}
        assert picture.alt == "y (s) against x, VIRTUAL: one 0.5; two 1. The laws drawn in: x/2."

    def test_a_figure_that_begins_above_zero_says_so(self) -> None:
        """The axis of shares names the share that it begins at."""
        picture = figures.shares("T", "the questions", {"a": np.array([0.001, 0.002])}, above=80)
        assert "from 80" in picture.axes[0].get_ylabel()
        assert "a: 99 % within 2 ms" in picture.alt

    def test_a_copys_age_is_a_saw_tooth(self) -> None:
        """It falls to one transit with each answer, and grows to an interval and a transit."""
        picture = figures.copy_age(polled(1.0), 0.05, start=0, end=6)
        ages = [y for line in picture.axes[0].lines[:-1] for y in np.asarray(line.get_ydata(), float)]
        assert min(ages) == pytest.approx(0.05)
        assert max(ages) == pytest.approx(1.05)
        assert "from 50 ms to 1.05 s" in picture.alt

    def test_who_asks_together_is_counted_from_when_it_is_settled(self) -> None:
        """Title and text have the number that the bars show after that moment."""
        runs = {"all": polled(1.0), "other": polled(0.5)}
        picture = figures.asked_together(runs, 4)
        assert f"all: {figures.most_together(runs['all'], 4)}" in picture.alt
        assert "after 4" in picture.get_suptitle().replace("\n", " ")
