"""Predictions held against real routers: a sample; `python -m bench truth` does all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from labtruth import judge
from labworld import has_frr

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not has_frr(), reason="FRR is not installed: apt-get install frr"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: run as root"),
]


SAMPLE = {
    "two-as": ["north"],
    "leaf-spine": ["leaf1-spine1"],
    "chain": ["r2-r3"],
    # One after the other: a zebra that trusts the kernel's nexthop objects never recovers.
    "parallel": ["r1-r2", "r1-r2-2", "r2-r3"],
}


def test_real_routers_do_what_was_predicted() -> None:
    """Every session and every loopback is as predicted after the failure, and returns."""
    with ThreadPoolExecutor(len(SAMPLE)) as pool:
        verdicts = pool.map(lambda name: judge(name, cuts=SAMPLE[name]), SAMPLE)
        found = {(item.lab, item.cut): item.disagreements for some in verdicts for item in some}

    assert found == {(lab, cut): () for lab, cuts in SAMPLE.items() for cut in cuts}
