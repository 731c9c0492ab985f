"""Reading what the tools of macOS, the BSDs and Windows print.

Owns: unix.py (ifconfig, netstat, lsof), windows.py (PowerShell's JSON, which no locale changes).
Both give the same values as Linux's netlink, so audit, addr and doctor need no second judgement.

Must never: run a tool (kernel/foreign does). Lines that are not understood are skipped.

Written after the systems' manuals and tested on recordings made by hand: nobody here has run it on
those systems yet.

Example::

    links, addresses = parse_ifconfig(text)
"""
