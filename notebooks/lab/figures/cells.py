"""A cell of the fault matrix, opened: the client with a cursor above the one without, the fault in between."""

from lab.bench.result import seconds
from lab.faults import Cell
from lab.faults.outcome import LETTERS
from lab.figures.style import Picture
from lab.figures.timeline import timeline

BEFORE, AFTER = 0.25, 0.35  # of the time from the fault's beginning to the recovery, drawn before and after it


def cell_timeline(cell: Cell) -> Picture:
    """The two runs of a cell around the fault, which is shaded; a cross is an update that never came."""
    kept = cell.keeping
    least = 8.0 if kept.mode == "VIRTUAL" else 1.0
    span = max(least, max(kept.back, cell.forgetting.back) - kept.began)
    start, end = max(0.0, kept.began - BEFORE * span), min(kept.run.end, kept.began + (1 + AFTER) * span)
    noticed = f" in {seconds(kept.detected_in)}" if kept.client is not None else ""
    seen = f"seen by {LETTERS[kept.seen_by]}{noticed}"
    title = f"{kept.fault}, {kept.subject}: {seen}; lost {kept.lost} with a cursor, {cell.forgetting.lost} without"
    shade = {"the fault": (kept.began, max(kept.ended, kept.began + span / 80))}
    text = f"Timeline ({kept.mode}). {title}. With a cursor: {kept!r}. Without: {cell.forgetting!r}."
    return timeline([kept.run, cell.forgetting.run], title=title, alt=text, start=start, end=end, shade=shade)
