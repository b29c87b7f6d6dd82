"""Windows and macOS, as far as they can be tried on another system: without what only Linux has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(sys.platform != "linux", reason="what only Linux has is hidden")
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_course_works_without_what_only_linux_has(system: str) -> None:
    """Every module is imported, the models deliver, a watched directory is mirrored, and the doctor finds no fault."""
    command = [sys.executable, "-W", "error", "-m", "tests.support_elsewhere", system]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert re.search(r"(?m)^ok +watching a directory: a change is heard of$", done.stdout)
    assert bool(re.search(r"(?m)^ok +open files: ", done.stdout)) == (system == "darwin")
