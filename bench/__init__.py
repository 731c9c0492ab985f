"""Measurements of loopbox against doing without it and against its peers.

One module per group of claims (`inside`, `frontdoor`, `startup`, `scale`); `harness` holds what a
measurement is, `world` the processes, `peers` the other programs, `loads` the clients, `render` the
page. `python -m bench` runs all of it in a network namespace of its own and writes the page.
"""
