"""Tests of lab.figures.page: what a notebook shows besides figures."""

import pytest

from lab.figures.page import Comparison, Source


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (12345, "12,345"), (0.04567, "0.0457"), (985.4, "985"), (1075.0, "1,075"), (-2840.6, "-2,841")],
)
def test_numbers_are_shown_to_three_digits_and_never_as_powers_of_ten(value: float, shown: str) -> None:
    """Whole numbers in full, others to three digits, from a thousand on to the unit."""
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
