"""The course's servers and clients on a stage that fits into a browser tab: one situation, played in virtual time.

situation.py   what a page's controls say, checked
stage.py       the servers and clients of a situation, run; what happens is told while it happens
forecast.py    what the laws say of it beforehand
clients/       the client of each model, short enough to be read and changed on the page

The same code runs in Python on a machine and in Pyodide in a browser, and gives the same numbers.
"""

from lab.tab.situation import CONTROLS, Control, Situation
from lab.tab.stage import HTTP, client_source, play, server_source

__all__ = ["CONTROLS", "HTTP", "Control", "Situation", "client_source", "play", "server_source"]
