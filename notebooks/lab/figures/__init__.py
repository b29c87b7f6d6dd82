"""The course's figures: one look, and a sentence for those who cannot see.

style.py     the look: each model's colour, line and marker; a Picture and its alternative text
timeline.py  a lane per client: updates, requests, deliveries
ecdf.py      delays: which share had come within how long
bars.py      requests: how many brought something
curves.py    a law as a line and what was measured as points; a copy's age; a crowd's requests
maps.py      the decision's figures
words.py     what a figure of runs says: its title and its text, from the numbers
page.py      what a notebook shows besides figures: a file's source, guesses beside results, claims
embed.py     a live page inside a notebook
holding.py   what long polling loses between two requests, how often and how many ask
streams.py   a stream cut into chunks, held back by a proxy, and cut off for a while
cells.py     a cell of the fault matrix, opened
copies.py    copies of a directory: how far behind, by whose share, at what cost
wire_views.py  a protocol's messages, frames byte by byte, flights in space and time
"""

from lab.figures.bars import request_bars
from lab.figures.cells import cell_timeline
from lab.figures.curves import asked_together, copy_age, law_and_points, most_together, shares
from lab.figures.ecdf import delay_ecdf
from lab.figures.embed import embed
from lab.figures.maps import boundaries, decision_map, flip, slopes, turns, unit_costs
from lab.figures.page import Claims, Comparison, Source, claims
from lab.figures.streams import cut_lines, missed, proxy_lanes
from lab.figures.style import GREY, INK, OTHER, STYLES, WIDTH, Picture, blank, show, style
from lab.figures.timeline import MOST_UPDATES, timeline

__all__ = [
    "GREY",
    "INK",
    "MOST_UPDATES",
    "OTHER",
    "STYLES",
    "WIDTH",
    "Claims",
    "Comparison",
    "Picture",
    "Source",
    "asked_together",
    "blank",
    "boundaries",
    "cell_timeline",
    "claims",
    "copy_age",
    "cut_lines",
    "decision_map",
    "delay_ecdf",
    "embed",
    "flip",
    "law_and_points",
    "missed",
    "most_together",
    "proxy_lanes",
    "request_bars",
    "shares",
    "show",
    "slopes",
    "style",
    "timeline",
    "turns",
    "unit_costs",
]
