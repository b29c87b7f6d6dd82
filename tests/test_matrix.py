"""The fault matrix: what each cell promises, the laws it obeys, and how guesses are held against it."""

import math
from typing import Any

import pytest

from lab.bench.result import VIRTUAL
from lab.clients.connections import CONNECT_LIMIT, SILENCE
from lab.faults import COURSE, FAULTS, SUBJECTS, Cell, Matrix, run_row, simulate
from lab.figures import cell_timeline

ROWS = {name: fault for name, fault in FAULTS.items() if fault.mode == VIRTUAL}
STREAMS = ("WebSocket", "SSE", "file updates")
pytestmark = pytest.mark.timeout(400)  # the first test waits for all rows: half a minute, on a busy machine far more


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    """Every row in VIRTUAL time, and one of real sockets."""
    return Matrix({name: run_row(name) for name in [*ROWS, "proxy acks for the dead"]})


def test_with_a_cursor_nothing_is_lost_unless_it_is_said(matrix: Matrix) -> None:
    """In every cell a client with a cursor gets everything; only where history has expired not, and it is told."""
    for (fault, subject), cell in matrix.items():
        if not FAULTS[fault].loses:
            assert cell.keeping.lost == 0, (fault, subject)
        elif subject == "file updates":
            assert (cell.keeping.lost, cell.keeping.resets) == (0, 1)  # it lists again
        else:
            assert (cell.keeping.lost > 0, cell.keeping.resets) == (True, 1), (fault, subject)


def test_nothing_comes_twice(matrix: Matrix) -> None:
    """In no cell is an update handed over twice, whatever was sent twice."""
    assert {key: cell.keeping.duplicated for key, cell in matrix.items() if cell.keeping.duplicated} == {}


def test_a_request_that_brought_updates_was_not_for_nothing(matrix: Matrix) -> None:
    """An update counts for the request that brought it: of a stream that is reset, both have brought some."""
    run = matrix["reset", "SSE"].keeping.run
    assert (run.useful, run.wasted) == (2, 0)
    assert sum(request.updates for request in run.all_requests) == run.deliveries


def test_every_client_catches_up(matrix: Matrix) -> None:
    """No cell ends with a client that has not the newest update."""
    assert not [key for key, cell in matrix.items() if "never" in cell.keeping.aside + cell.forgetting.aside]


@pytest.mark.parametrize("fault", ["black hole", "black hole, one way"])
def test_silence_is_noticed_within_its_limit(matrix: Matrix, fault: str) -> None:
    """A stream's client notices a black hole within 2.5 heartbeats, a poll's within its period and its timeout."""
    for subject in STREAMS:
        assert matrix[fault, subject].keeping.detected_in <= SILENCE * COURSE.heartbeat + 0.1
    assert matrix[fault, "short polling"].keeping.detected_in <= COURSE.interval + COURSE.timeout + 0.1
    assert matrix[fault, "long polling"].keeping.detected_in <= COURSE.wait + COURSE.timeout + 0.1


def test_recovery_is_within_the_back_off(matrix: Matrix) -> None:
    """Once a fault is over, a client is back within the longest pause, one attempt that was under way, and a period."""
    longest = COURSE.retry + COURSE.cap + CONNECT_LIMIT + COURSE.interval
    for key, cell in matrix.items():
        assert cell.keeping.recovered_in <= longest, key


def test_a_total_limit_is_one_reconnect_for_each(matrix: Matrix) -> None:
    """A stream under a total limit L is opened anew once for every L; polls, even held ones, never come near it."""
    for subject in STREAMS:
        outcome = matrix["total limit", subject].keeping
        assert sum(request.failed for request in outcome.run.all_requests) == 3
    assert math.isinf(matrix["total limit", "long polling"].keeping.detected_in)


def test_an_sse_heartbeat_ends_at_the_proxy(matrix: Matrix) -> None:
    """Behind a proxy the server of an event stream does not notice a client that vanished; a WebSocket's ping does."""
    row = "proxy acks for the dead"
    assert matrix[row, "SSE"].keeping.server is None
    assert matrix[row, "file updates"].keeping.server is None
    assert matrix[row, "WebSocket"].keeping.server is not None


def test_a_cell_is_the_same_each_time() -> None:
    """A cell in VIRTUAL time can be repeated: the same requests and deliveries at the same moments."""
    once, again = (simulate(FAULTS["5xx on reconnect"], SUBJECTS["SSE"], keeps=True) for _ in range(2))
    assert once.run.all_requests == again.run.all_requests
    assert once.run.all_deliveries == again.run.all_deliveries


def right_guesses(matrix: Matrix) -> tuple[dict[str, str], dict[str, str]]:
    rows = matrix.rows.items()
    seen = {fault: "".join(cell.seen_by for cell in row.values()) for fault, row in rows}
    return seen, {fault: "".join(cell.loses for cell in row.values()) for fault, row in rows}


def test_right_guesses_are_right(matrix: Matrix) -> None:
    """Who guesses all cells right is told so, and nothing else."""
    judgement = matrix.judge(*right_guesses(matrix))
    assert len(judgement.judged) == 2 * len(matrix)
    assert repr(judgement) == f"{2 * len(matrix)} of {2 * len(matrix)} guesses are right"


def test_each_wrong_guess_is_shown_by_its_run(matrix: Matrix) -> None:
    """Every wrong guess, and no right one, is named with its cell, what the run showed, and how to open it."""
    seen, lost = right_guesses(matrix)
    seen["reset"], lost["black hole"] = "b....", "nyyyy"
    judgement = matrix.judge(seen, lost)
    assert [(guess.fault, guess.subject) for guess in judgement.wrong] == [
        ("reset", "short polling"),
        ("black hole", "short polling"),
    ]
    first, second = (guess.text for guess in judgement.wrong)
    assert "you said both notices" in first
    assert "open_cell('reset', 'short polling')" in first
    assert "nothing is lost, even without" in second
    assert second in repr(judgement)
    assert "open_cell" in judgement._repr_html_()


@pytest.mark.parametrize("guess", [{"flood": "n"}, {"reset": "x...."}, {"reset": "nnnnnn"}, {"reset": 7}])
def test_a_guess_that_says_nothing_is_refused(matrix: Matrix, guess: dict[str, Any]) -> None:
    """A fault that there is not, a letter that means nothing, or one too many, is told so in one line."""
    judgement = matrix.judge(guess, {"reset": "yyyyy"})
    assert len(judgement.judged) == 5
    assert repr(judgement).splitlines()[-1].startswith("who notices")
    assert "who notices" in judgement._repr_html_()


def test_blank_guesses_are_none(matrix: Matrix) -> None:
    """What is left blank is not judged."""
    assert matrix.judge({"reset": ". . . . ."}, {"reset": ""}).judged == []


def test_a_table_and_a_figure_say_what_the_cell_says(matrix: Matrix) -> None:
    """The table has every cell; a cell's figure has a title and a text taken from the run."""
    table = matrix._repr_html_()
    assert table.count("<td style") == len(matrix)
    cell: Cell = matrix["black hole", "SSE"]
    picture = cell_timeline(cell)
    assert f"lost 0 with a cursor, {cell.forgetting.lost} without" in picture.alt
    with pytest.raises(KeyError, match="no fault is called 'flood'"):
        matrix["flood", "SSE"]
