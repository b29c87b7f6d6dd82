"""For those who teach: editions of the notebooks, a repository for students, a course for nbgrader.

    notebooks/*.ipynb ─▶ edition ─┬─▶ reader, blank, solutions: a folder and a zip
    notebooks/solutions/*.ipynb ──┘   students: the repository without what gives an answer away
                                      course: what `nbgrader` hands out, collects and marks

Everything is made from the notebooks that readers have, by the tags of their cells: `prediction` (a guess, before a
run) and `exercise` (a function to be written, and the check of it).
"""

from lab.teaching.course import write_course
from lab.teaching.editions import EDITIONS, write_edition, write_students

__all__ = ["EDITIONS", "write_course", "write_edition", "write_students"]
