"""The doctor's ladder: from the loopback outward, what works, and what the first fault is.

Owns: observed.py (what was measured, as values), ladder.py (the rungs in order, and consequences),
inward.py (loopback and localhost), outward.py (link, gateway, remote), naming.py (DNS, boxes).

Must never: measure anything (kernel/probes does), or report a consequence as a fault of its own.

Example::

    rungs = climb(observed)
    all(rung.state != "fail" for rung in rungs)
"""
