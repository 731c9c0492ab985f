"""Predictions: known outcomes, and three ways of computing held against each other."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopbox.errors import UsageError
from loopbox.lab.igp import INFINITE, Igp
from loopbox.lab.outcomes import Scenario, document
from loopbox.lab.predict import Predictor, elements, failure_sets, predict
from loopbox.lab.topology import Lab, load, parse

EXAMPLES = Path(__file__).parents[2] / "examples" / "labs"


def example(name: str) -> Lab:
    """One of the labs under examples/."""
    return load(EXAMPLES / f"{name}.toml")


def outcome(name: str, *cut: str) -> Scenario:
    """What a failure does to an example."""
    return Predictor(example(name)).scenario(cut)


def lost(scenario: Scenario) -> list[str]:
    """Names of the sessions that are lost."""
    return [session.name for session in scenario.sessions_lost]


def away(scenario: Scenario) -> dict[str, tuple[str, ...]]:
    """Box to those who no longer reach it."""
    return {item.box: item.sources for item in scenario.unreachable}


def test_a_cut_link_costs_only_the_session_on_its_addresses() -> None:
    """In the triangle the loopback sessions are held and the traffic goes round."""
    found = outcome("triangle", "r1-r2")

    assert lost(found) == ["r1-r2 on r1-r2"]
    assert away(found) == {}
    assert [(item.source, item.target, item.was, item.now) for item in found.reroutes] == [
        ("r1", "r2", ("r2",), ("r3",)),
        ("r2", "r1", ("r1",), ("r3",)),
    ]


def test_a_router_cut_off_is_lost_to_all() -> None:
    """Two links gone: r1 stands alone, and what it loses is told from both sides."""
    found = outcome("triangle", "r1-r2", "r1-r3")

    assert lost(found) == ["r1-r2", "r1-r2 on r1-r2", "r1-r3", "r1-r3 on r1-r3"]
    assert away(found) == {"r1": ("r2", "r3"), "r2": ("r1",), "r3": ("r1",)}


def test_a_failed_box_is_no_loss_for_the_others() -> None:
    """What fails takes its own sessions along; that alone is no reason to fail a check."""
    found = outcome("reflector", "core2")

    assert lost(found) == ["core1-core2", "core2-edge", "core2-access"]
    assert not found.hurts(example("reflector"))


def test_an_external_session_between_loopbacks_survives_either_link() -> None:
    """With static routes over both links the session of the two ASes is held."""
    assert [[], []] == [lost(outcome("two-as", name)) for name in ("north", "south")]
    assert lost(outcome("two-as", "north", "south")) == ["a2-b2"]


def test_a_spine_is_not_reached_through_its_twin() -> None:
    """Spines share an AS, so a leaf that loses one spine's link loses its loopback (RFC 4271)."""
    assert away(outcome("leaf-spine", "leaf1-spine1")) == {
        "spine1": ("leaf1",),
        "leaf1": ("spine1",),
    }


def test_an_anycast_address_outlives_one_of_its_boxes() -> None:
    """The client loses the near server's own loopback but not the shared address."""
    found = outcome("anycast", "near")

    assert "10.99.0.53" not in {address for item in found.unreachable for address in item.loopbacks}


def test_an_igp_slower_than_the_hold_time_makes_sessions_flap() -> None:
    """A silent failure that OSPF notices after BGP gave up is told as flapping."""
    text = (EXAMPLES / "triangle.toml").read_text().replace("ospf = {}", "ospf = { dead = 4 }")
    lab = parse(text, path=Path("slow.toml"))
    silent = Predictor(lab, kind="silent").scenario(["r1-r2"])
    carrier = Predictor(lab).scenario(["r1-r2"])

    assert [item.name for item in silent.sessions_flapping] == ["r1-r2"]
    assert carrier.sessions_flapping == ()


def test_the_document_is_the_contracts() -> None:
    """Router IDs, and one scenario for each link and box."""
    lab = example("triangle")
    found = document(lab, predict(lab), rules=["junos"])

    assert found["router_ids"] == {"r1": "10.255.0.1", "r2": "10.255.0.2", "r3": "10.255.0.3"}
    assert [scenario["cut"] for scenario in found["scenarios"]] == [[x] for x in elements(lab)]
    assert {"cut", "sessions_lost", "unreachable", "reroutes"} <= found["scenarios"][0].keys()
    assert found["router_ids_as"]["junos"]["r1"]["reason"] == "lowest loopback address"


def test_every_set_up_to_n_is_predicted_and_too_many_are_refused() -> None:
    """Six elements give 6 + 15 sets of up to two; a count that never ends is refused."""
    lab = example("triangle")

    assert len(list(failure_sets(lab, failures=2))) == 21
    large = "".join(f'[box.b{n}]\nloopback = "auto"\n' for n in range(300))
    with pytest.raises(UsageError, match="at most"):
        failure_sets(parse(large, path=Path("large.toml")), failures=3)


def random_lab(seed: int) -> Lab:
    """A lab of OSPF routers with random links, costs and internal sessions."""
    dice = random.Random(seed)
    count = dice.randint(3, 8)
    text = "".join(
        f'[box.r{n}]\nloopback = "auto"\nospf = true\nbgp = {{ as = 1, source = "both" }}\n'
        for n in range(count)
    )
    for _ in range(dice.randint(count - 1, 2 * count)):
        ends = dice.sample(range(count), dice.choice([2, 2, 2, 3]))
        names = ", ".join(f'"r{n}"' for n in ends)
        text += f"[[link]]\nends = [{names}]\ncost = {dice.choice([1, 1, 2, 10])}\n"
    return parse(text, path=Path("random.toml"))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_distances_and_walking_agree(seed: int, failures: int) -> None:
    """The fast way and the general way predict the same for any lab and failure."""
    lab = random_lab(seed)
    cut = random.Random(seed).sample(elements(lab), failures)
    fast, general = Predictor(lab), Predictor(lab, general=True)
    one, two = fast.scenario(cut), general.scenario(cut)

    assert fast.standing == general.standing
    assert lost(one) == lost(two)
    assert away(one) == away(two)
    alive = {item for item in one.reroutes if not {item.source, item.target} & set(cut)}
    assert alive == set(two.reroutes)


EDGES = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(1, 3)).filter(
        lambda edge: edge[0] != edge[1]
    ),
    min_size=1,
    max_size=24,
)


@settings(deadline=None)
@given(EDGES, st.data())
def test_failures_nest_and_undo_exactly(
    edges: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """After each failure the distances are those of the smaller graph, after undo the old ones."""
    igp, left, failures = Igp(8, edges), set(range(len(edges))), []
    for _ in range(2):
        gone = data.draw(st.sets(st.sampled_from(range(len(edges))), max_size=3))
        failures.append(igp.fail(sorted(gone)))
        left -= gone
        expected = Igp(8, [edge for number, edge in enumerate(edges) if number in left])
        assert (igp.distances == expected.distances).all()
    before, after = Igp(8, edges), Igp(8, [edges[number] for number in sorted(left)])
    changed = {
        (source, target)
        for source in range(8)
        for target in range(8)
        if source != target
        and after.distances[source, target] < INFINITE
        and before.next_hops(source, target) != after.next_hops(source, target)
    }

    assert {(source, target) for source, target, _, _ in igp.rerouted(*failures)} == changed
    for failure in reversed(failures):
        igp.restore(failure)
    assert (igp.distances == igp.base).all()
