"""The notebooks' lab, wing by wing; imports run from the top of this list down, never up.

teaching  editions of the notebooks, assignments with marks (python -m lab.teaching)
checks    what an exercise cell calls: right, or which mistake the answer looks like
figures   timeline, ECDF, bars, maps, tables and embedded pages: one look for the whole course
faults    what breaks, on purpose: each fault against each model, and who notices, what is lost
cost      a server measured in a process of its own, unit costs, the ladder, the decision
tab       a situation that fits into a browser's tab: servers and clients on a stage, the laws beside them
bench     what an experiment is: schedule, clients, trial, result
virtual   the same servers and clients under a simulated clock and network
proxies   what stands between: a cable under control, nginx and its imitation
theory    the laws as closed forms, the simulation without sockets, the framing of WebSocket
mirror    list, then watch: keeps a directory identical (python -m lab.mirror)
clients   the robust client of each model (python -m lab.clients)
"""
