"""Labs to and from containerlab, and from munet."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loopbox.errors import ConfigError
from loopbox.lab.containerlab import export_lab, import_lab
from loopbox.lab.importing import import_topology
from loopbox.lab.munet import import_munet
from loopbox.lab.topology import Lab, load, parse
from loopbox.lab.yaml_subset import dump

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "labs").glob("*.toml"))
SCHEMA = Path(os.environ.get("CLAB_SCHEMA", ROOT / "clab.schema.json"))
"""containerlab's published schema is not ours to ship: the check runs where it is given."""


def topology(lab: Lab) -> dict[str, Any]:
    """The exported topology file, as data."""
    made = export_lab(lab)
    found: dict[str, Any] = yaml.safe_load(next(iter(made.files.values())))
    return found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.skipif(not SCHEMA.exists(), reason="set CLAB_SCHEMA to containerlab's schema")
def test_exports_are_valid_by_the_published_schema(path: Path) -> None:
    """Each example exports to a file that containerlab's JSON schema accepts."""
    jsonschema = pytest.importorskip("jsonschema")

    # Its patterns are ECMAScript's; \p{N} is the one thing Python's re does not know.
    schema = json.loads(SCHEMA.read_text().replace(r"\\p{N}\\p{L}", r"\\w"))
    jsonschema.validate(topology(load(path)), schema)


def test_the_triangle_exports_as_reviewed() -> None:
    """The whole export of the triangle: topology, configurations, daemons."""
    made = export_lab(load(ROOT / "examples" / "labs" / "triangle.toml"))
    text = "".join(f"#### {name}\n{content}" for name, content in made.files.items())
    path = ROOT / "tests" / "golden" / "containerlab-triangle.txt"
    if os.environ.get("LOOPBOX_UPDATE_GOLDEN"):
        path.write_text(text)

    assert path.read_text() == text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_exported_comes_back(path: Path) -> None:
    """Export and import keep boxes, loopbacks, links and addresses."""
    lab = load(path)
    back = parse(import_lab(topology(lab), name=lab.name).text, path=path)

    assert [box.name for box in back.boxes] == [box.name for box in lab.boxes]
    assert sorted(sorted((e.box, e.addresses) for e in link.ends) for link in back.links
                  if not any(x.unnumbered for x in lab.links)) == sorted(
        sorted((e.box, e.addresses) for e in link.ends) for link in lab.links
        if not link.unnumbered)  # fmt: skip
    for box in lab.boxes:
        assert set(box.loopback) <= set(back.box(box.name).loopback)


def test_devices_are_renamed_everywhere_in_a_configuration() -> None:
    """containerlab's eth1… stand in interfaces, static routes and unnumbered neighbours."""
    for name, old in (("leaf-spine", "spine1"), ("two-as", "b2-2")):
        lab = load(ROOT / "examples" / "labs" / f"{name}.toml")
        box = "leaf1" if name == "leaf-spine" else "a2"
        conf = export_lab(lab).files[f"{box}/frr.conf"]
        lines = [line for line in conf.splitlines() if "description" not in line]

        assert [] == [line for line in lines if old in line.split()]


def test_what_cannot_be_exported_is_told() -> None:
    """Bridges, health checks and services are named, not dropped."""
    told = export_lab(load(ROOT / "examples" / "labs" / "anycast.toml")).left_out
    bridge = export_lab(load(ROOT / "examples" / "labs" / "virtual.toml")).left_out

    assert any("health check of 10.99.0.53/32" in line for line in told)
    assert any("ip link add br-farm type bridge" in line for line in bridge)


def test_a_foreign_topology_is_read_as_far_as_it_maps() -> None:
    """Kinds, commands and links that loopbox lacks are listed."""
    found = import_lab(
        {
            "name": "DC 1",
            "mgmt": {"network": "x"},
            "topology": {
                "nodes": {
                    "R1": {
                        "kind": "nokia_srlinux",
                        "exec": ["ip addr add 10.0.0.1/32 dev lo", "ls"],
                    },
                    "r2": {"kind": "linux", "binds": ["r2.conf:/etc/frr/frr.conf"], "cpu": 2},
                },
                "links": [
                    {"endpoints": ["R1:e1-1", "r2:eth1"]},
                    {"endpoints": ["R1:e1-2", "host:veth0"]},
                ],
            },
        },
        name="dc.clab.yml",
    )
    lab = parse(found.text, path=Path("dc.toml"))

    assert (lab.name, [box.name for box in lab.boxes]) == ("dc-1", ["r1", "r2"])
    assert [link.name for link in lab.links] == ["r1-r2"]
    assert list(found.left_out) == [
        "`mgmt` of the file",
        "node `R1`: command `ls`",
        "node `R1`: kind `nokia_srlinux`: it becomes a plain box",
        "node `r2`: `cpu`",
        "link to the host: R1, host",
    ]


def test_groups_commands_and_own_configurations_map() -> None:
    """FRR's kind with its startup-config, hosts with routes; nothing made up for the routers."""
    found = import_lab(
        {
            "name": "frr",
            "topology": {
                "defaults": {"image": "x"},
                "groups": {"routers": {"kind": "frr"}, "hosts": {"kind": "linux"}},
                "nodes": {
                    "r1": {"group": "routers", "startup-config": "r1/frr.conf"},
                    "r2": {"group": "routers", "startup-config": "r2/frr.conf"},
                    "pc": {
                        "group": "hosts",
                        "exec": [
                            "ip link set eth1 up",
                            "ip addr add 10.1.0.2/24 dev eth1",
                            "ip route add default via 10.1.0.1 dev eth1",
                        ],
                    },
                },
                "links": [
                    {"endpoints": ["r1:eth1", "r2:eth1"]},
                    {"endpoints": ["pc:eth1", "r1:eth2"]},
                ],
            },
        },
        name="frr.clab.yml",
    )
    lab = parse(found.text, path=Path("frr.toml"))

    assert found.left_out == ()
    assert [box.config for box in lab.boxes] == [Path("r1/frr.conf"), Path("r2/frr.conf"), None]
    assert [(end.interface, end.addresses) for end in lab.links[0].ends] == [
        ("eth1", ()),
        ("eth1", ()),
    ]
    assert [str(route.to) for route in lab.box("pc").static] == ["0.0.0.0/0"]
    assert lab.box("pc").static[0].via[0].interface == "eth1"


def test_munet_nodes_networks_and_connections_map() -> None:
    """A munet file gives boxes, a bridge for its network and a link for its connection."""
    found = import_munet(
        {
            "topology": {
                "loopbacks-autonumber": True,
                "networks": [{"name": "net1", "ip": "10.1.0.0/24", "mtu": 9000}],
                "nodes": [
                    {"name": "r1", "kind": "frr", "connections": ["net1", {"to": "r3"}]},
                    {
                        "name": "r2",
                        "connections": [{"to": "net1", "name": "eth7", "delay": 5}],
                        "cmd": "x",
                    },
                    {"name": "r3", "connections": ["r1", "net1"]},
                ],
            }
        },
        name="munet.yaml",
    )
    lab = parse(found.text, path=Path("m.toml"))

    assert [link.name for link in lab.links] == ["r1-r3", "net1"]
    assert [end.box for end in lab.link("net1").ends] == ["r1", "r2", "r3"]
    assert lab.link("net1").end("r2").interface == "eth7"
    assert str(lab.link("net1").end("r1").addresses[0]) == "10.1.0.1/24"
    assert found.left_out == (
        "network `net1`: `mtu`",
        "node `r1`: kind `frr`: it becomes a plain box",
        "node `r2`: `cmd`",
        "node `r2`: `delay` of its connection to `net1`",
    )


@given(st.deferred(lambda: TREES))
def test_no_topology_makes_the_reader_fall_over(tree: Any) -> None:
    """Whatever stands where nodes and links should be: a lab file, or an error of one line."""
    for nodes in (tree, {"r1": tree}, [tree]):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"topology": {"nodes": nodes, "links": tree, "networks": tree}}, file)
            file.flush()
            try:
                assert import_topology(Path(file.name)).text
            except ConfigError as error:
                assert error.hint


@pytest.mark.parametrize("text", ["[]", "{}", '{"topology": 3}', '{"topology": {"nodes": 1}}'])
def test_what_is_no_topology_is_refused(text: str, tmp_path: Path) -> None:
    """Any other document is an error of one line with a hint."""
    path = tmp_path / "x.json"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        import_topology(path)
    assert caught.value.hint


TREES = st.recursive(
    st.text(max_size=12) | st.integers() | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), TREES, min_size=1, max_size=3))
def test_what_is_written_as_yaml_is_read_as_the_same(tree: dict[str, Any]) -> None:
    """Any tree of plain values survives our YAML and another's reader."""
    assert yaml.safe_load(dump(tree)) == tree
