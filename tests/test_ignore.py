"""The patterns that leave paths out, beside git, whose words they are."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servers.ignore import Ignore, folds_case

NAMES = ["a", "b", "x", "sub", "a.t", "ab", "B"]
PIECES = ["a", "b", "*", "**", "?", "a*", "[ab]", "[!a]", "[^b]", "[a-b]*", "[]a]", "*.t", "sub", "\\a", "a**"]
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
patterns = st.tuples(
    st.sampled_from(["", "/"]), st.lists(st.sampled_from(PIECES), min_size=1, max_size=3), st.sampled_from(["", "/"])
).map(lambda parts: parts[0] + "/".join(parts[1]) + parts[2])


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git to compare with")
@given(every=st.lists(paths, min_size=1, max_size=40, unique=True), some=st.lists(patterns, min_size=1, max_size=3))
@settings(deadline=None, max_examples=60, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_patterns_mean_what_gits_do(tmp_path: Path, every: list[str], some: list[str]) -> None:
    """Whatever the patterns, the files that git would ignore are hidden, and no other."""
    here = tmp_path / "repository"
    shutil.rmtree(here, ignore_errors=True)
    subprocess.run(["git", "init", "-q", here], check=True)
    (here / ".gitignore").write_text("".join(f"{pattern}\n" for pattern in some))
    files = []
    for path in sorted(every, key=len, reverse=True):
        if not (here / path).exists() and not any(parent.is_file() for parent in (here / path).parents):
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            (here / path).touch()
            files.append(path)
    asked = ["git", "-C", str(here), "check-ignore", "--stdin", "-z", "--no-index"]
    answer = subprocess.run(asked, input="\0".join(files), capture_output=True, text=True, check=False)
    assert answer.returncode in (0, 1)
    ignore = Ignore(some)
    assert {path for path in files if ignore.hides(path)} == set(answer.stdout.split("\0")) - {""}


@pytest.mark.parametrize(
    "pattern", ["", " ", "/", "//", "!a", "# a", "./secret", "a/../b", "a//b", "[a", "a\\", "a/.", "!"]
)
def test_a_pattern_that_could_hide_nothing_is_refused(pattern: str) -> None:
    """Silence would be taken for protection."""
    with pytest.raises(ValueError, match="pattern"):
        Ignore([pattern])


@pytest.mark.parametrize("pattern", ["secret", "secret/", "/secret", "/secret/", "**/secret", "secret/**", "s*t/"])
def test_every_way_to_name_a_directory_hides_what_is_in_it(pattern: str) -> None:
    """With a slash before, behind or none, the files below are hidden."""
    assert Ignore([pattern]).hides("secret/key")
    assert not Ignore([pattern]).hides("other/key")


def test_a_pattern_for_directories_hides_no_file() -> None:
    """One that ends in a slash fits a directory of that name, and not a file."""
    assert Ignore(["build/"]).hides("build", is_dir=True)
    assert not Ignore(["build/"]).hides("build")


def test_where_names_have_no_case_patterns_have_none() -> None:
    """What is hidden as `.git` is hidden as `.GIT`, where both are one directory."""
    assert not Ignore([".git"]).hides(".GIT/config")
    assert Ignore([".git"], any_case=True).hides(".GIT/config")


def test_without_patterns_nothing_is_hidden() -> None:
    """An empty list is false, and hides nothing."""
    assert not Ignore()
    assert not Ignore().hides("a")


def test_this_file_system_is_asked_whether_case_counts(tmp_path: Path) -> None:
    """The directory's own name in the other case is there, or is not."""
    place = tmp_path / "Directory"
    place.mkdir()
    assert folds_case(str(place)) == (tmp_path / "dIRECTORY").exists()
