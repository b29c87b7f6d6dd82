"""The course's figures: one look, and a sentence for those who cannot see.

pictures.py  timeline, delays as ECDF, bars of requests; the style of each model
maps.py      the decision's figures
page.py      what a notebook shows besides figures: a file's source, predictions beside results
embed.py     a live page inside a notebook
"""

from lab.figures.embed import embed
from lab.figures.maps import boundaries, decision_map, flip, slopes
from lab.figures.page import Claims, Comparison, Source, claims
from lab.figures.pictures import (
    GREY,
    INK,
    MOST_UPDATES,
    OTHER,
    STYLES,
    WIDTH,
    Picture,
    blank,
    delay_ecdf,
    request_bars,
    show,
    style,
    timeline,
)

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
    "blank",
    "boundaries",
    "claims",
    "decision_map",
    "delay_ecdf",
    "embed",
    "flip",
    "request_bars",
    "show",
    "slopes",
    "style",
    "timeline",
]
