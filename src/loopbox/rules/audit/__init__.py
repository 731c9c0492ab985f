"""Who can reach each listener of a host or box, how dangerous that is, and what to do.

Owns: reach.py (from where a packet arrives), paths.py (the ways packets take into a device),
tools.py (programs that must not be reachable, and their bind flags), findings.py (the verdicts as
the contract's findings).

Must never: read the system, or call safe what could not be evaluated.

Example::

    Reachability(view).judge(listener).level        # "lan"
"""
