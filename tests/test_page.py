"""Tests of lab.figures.page: what a notebook shows besides figures."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from lab.figures.page import Comparison, Source, claims


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (12345, "12,345"), (0.04567, "0.0457"), (985.4, "985"), (1075.0, "1,075"), (-2840.6, "-2,841")],
)
def test_numbers_are_shown_to_three_digits_and_never_as_powers_of_ten(value: float, shown: str) -> None:
    """Whole numbers in full, others to three digits, from a thousand on to the unit, unless they are huge."""
    assert Comparison(head={"row": value}).rows == [("row", shown)]


def test_a_row_that_a_column_lacks_stays_empty_there() -> None:
    """Rows stand in the order in which they are first named, in text and in HTML, where names are escaped."""
    table = Comparison(guess={"a": 1}, law={"a": 2, "<b>": 0.5})
    assert table.rows == [("a", "1", "2"), ("<b>", "", "0.5")]
    assert repr(table).splitlines()[1:] == ["a             1           2", "<b>                     0.5"]
    assert '<tr><th scope="row">&lt;b&gt;</th><td></td><td>0.5</td></tr>' in table._repr_html_()


def test_source_is_that_of_the_file_that_runs() -> None:
    """Several things stand one after the other, as Python to be coloured."""
    text = repr(Source(Source, Comparison))
    assert text.startswith("class Source:")
    assert "\n\n\nclass Comparison:" in text
    assert Source(Source)._repr_markdown_() == f"```python\n{Source(Source)!r}\n```"


def test_a_guess_in_words_is_shown_and_answered_kindly() -> None:
    """A guess may be a word, and a deleted one leaves its place empty: nothing is raised, and no other row moves."""
    table = Comparison(guess={"requests": "three", "delay": 2}, LIVE={"requests": 4, "delay": 1.0, "bytes": 9})
    assert table.rows == [("requests", "three", "4"), ("delay", "2", "1"), ("bytes", "", "9")]
    assert repr(table).splitlines()[-1] == "“three” is no number: only those can be compared."
    assert "“three” is no number" in table._repr_html_()
    assert "“a”, “b” are no numbers" in repr(Comparison(guess={"x": "a", "y": "b"}))


@pytest.mark.parametrize("odd", [(0.1, 0.5), [1], {2: 3}, float("nan"), ..., 1j, b"3", float, np.array([1.0])])
def test_a_guess_that_is_no_number_is_answered_kindly(odd: Any) -> None:
    """Whatever a guess is, nothing is raised, and the table says that it cannot be compared."""
    assert "is no number" in repr(Comparison(**{"guess (ms)": {"x": odd}}))


@pytest.mark.parametrize(
    "guess", [-1, 0, True, 10**400, -(10**5000), float("inf"), Fraction(1, 3), np.float64(2)], ids=type
)
def test_a_guess_may_be_any_number(guess: Any) -> None:
    """However large it is, its cell is short."""
    table = Comparison(guess={"x": guess})
    assert len(table.rows[0][1]) < 13
    assert "no number" not in repr(table)


def test_claims_show_what_held() -> None:
    """Each sentence stands beside its evidence, in text and in HTML, numbers rounded."""
    held = claims({"nothing is lost": (True, 0), "<it> is late": (np.True_, [0.1234, np.float64(1500.2)])})
    assert repr(held).splitlines() == ["✓ nothing is lost  0", "✓ <it> is late     0.123, 1,500"]
    assert "<td>✓</td>" in held._repr_html_()
    assert "&lt;it&gt; is late</th>" in held._repr_html_()
    assert (
        repr(claims({"many": (1, range(9)), "by name": (1, {"a": 0.5}), "row": (1, list(range(9)))})).splitlines()[-1]
        == "✓ row      0, 1, 2, 3, 4, 5, … (9)"
    )


def test_a_claim_that_does_not_hold_is_raised_with_its_evidence() -> None:
    """All that do not hold are named at once; what held is not."""
    with pytest.raises(AssertionError) as broken:
        claims({"one": (True, 1), "two": (False, 0.30000000000000004), "three": (0 > 1, "never")})
    assert str(broken.value).splitlines() == ["not so:", "two: 0.3", "three: never"]
