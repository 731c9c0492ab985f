"""Labs to and from containerlab (https://containerlab.dev), the road to a cluster.

Owns: the mapping between a `Lab` and a containerlab topology: nodes of kind `linux` with FRR's
image, their configuration as files beside the topology, links as endpoint pairs, bridges as nodes
of kind `bridge`. What does not map is told, never dropped in silence.

Must never: write files (it returns them), read YAML (`read_topology` takes parsed data).

Example::

    export = export_lab(lab)
    export.files["triangle.clab.yml"]; export.left_out
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from loopbox.errors import ConfigError
from loopbox.lab.frr import daemons, render_frr_conf, sysctls
from loopbox.lab.records import Lab, LabBox, Link
from loopbox.lab.tables import quoted
from loopbox.lab.yaml_subset import dump

IMAGE = "quay.io/frrouting/frr:10.2.1"
"""FRR's own image, with a fixed release."""
HOST_IMAGE = "alpine:3.21"


@dataclass(frozen=True, slots=True)
class Export:
    """Files to write (path relative to the target folder to text), and what could not be said."""

    files: Mapping[str, str]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Import:
    """A lab file, and what of the source it leaves out."""

    text: str
    left_out: tuple[str, ...]


def export_lab(
    lab: Lab, *, image: str = IMAGE, own: Mapping[str, str] = MappingProxyType({})
) -> Export:
    """The lab as a containerlab topology; `own`: box to the text of the `config` it names."""
    files: dict[str, str] = {}
    left_out: list[str] = []
    nodes: dict[str, Any] = {}
    for box in lab.boxes:
        nodes[box.name] = _node(lab, box, files, left_out, image=image, own=own)
    names = {(box.name, link.name): port for box in lab.boxes for link, port in _ports(lab, box)}
    links: list[dict[str, Any]] = []
    for link in lab.links:
        if link.is_bridge:
            bridge = f"br-{link.name}"[:15]
            nodes[bridge] = {"kind": "bridge"}
            left_out.append(
                f"bridge `{link.name}`: make it on the host first: ip link add {bridge} type bridge"
            )
            for number, end in enumerate(link.ends, 1):
                pair = [f"{end.box}:{names[end.box, link.name]}", f"{bridge}:eth{number}"]
                links.append(_link(link, pair))
        else:
            links.append(_link(link, [f"{e.box}:{names[e.box, link.name]}" for e in link.ends]))
        if link.loss or link.delay or link.rate:
            left_out.append(
                f"link `{link.name}`: loss, delay and rate: use `containerlab tools netem set`"
            )
    topology = {"nodes": nodes, "links": links}
    name = lab.name.replace(".", "-")
    files = {f"{name}.clab.yml": dump({"name": name, "topology": topology}), **files}
    return Export(files, tuple(left_out))


def _ports(lab: Lab, box: LabBox) -> list[tuple[Link, str]]:
    """Device names inside the container: containerlab wants eth1 and up, eth0 is management."""
    return [(link, f"eth{number}") for number, link in enumerate(lab.links_of(box.name), 1)]


def _link(link: Link, endpoints: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"endpoints": endpoints}
    if link.mtu != 1500:
        found["mtu"] = link.mtu
    return found


def _node(
    lab: Lab,
    box: LabBox,
    files: dict[str, str],
    left_out: list[str],
    *,
    image: str,
    own: Mapping[str, str],
) -> dict[str, Any]:
    node: dict[str, Any] = {"kind": "linux", "image": image if box.is_router else HOST_IMAGE}
    if box.is_router:
        conf = own.get(box.name) or render_frr_conf(lab, box)
        for link, port in _ports(lab, box):
            old = link.end(box.name).interface
            conf = re.sub(rf"(?m)\b(interface|neighbor) {re.escape(old)}$", rf"\1 {port}", conf)
            conf = re.sub(rf"(?m)^( *neighbor ){re.escape(old)} ", rf"\g<1>{port} ", conf)
            conf = re.sub(rf"(?m)^(ip route .*) {re.escape(old)}$", rf"\1 {port}", conf)
        files[f"{box.name}/frr.conf"] = conf
        wanted = daemons(lab, box)
        files[f"{box.name}/daemons"] = "".join(
            f"{name}={'yes' if name in wanted else 'no'}\n"
            for name in ("bgpd", "ospfd", "bfdd", "staticd")
        ) + ('vtysh_enable=yes\nzebra_options="-A 127.0.0.1 -s 90000000"\n')  # fmt: skip
        node["binds"] = [
            f"{box.name}/frr.conf:/etc/frr/frr.conf",
            f"{box.name}/daemons:/etc/frr/daemons",
        ]
        if box.config is not None and box.name not in own:
            left_out.append(f"box `{box.name}`: its own `{box.config.name}`: copy it over frr.conf")
    node["sysctls"] = {key: _number(value) for key, value in sysctls(box)}
    if commands := _commands(lab, box):
        node["exec"] = commands
    left_out += [f"box `{box.name}`: service `{item.name}`: {item.run}" for item in box.services]
    left_out += [
        f"box `{box.name}`: health check of {item.address}: {item.check}"
        for item in box.anycast
        if item.check is not None
    ]
    return node


def _number(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


def _commands(lab: Lab, box: LabBox) -> list[str]:
    """Addresses and routes as commands that containerlab runs after the deployment."""
    on_lo = [*box.loopback, *box.virtual, *(item.address for item in box.anycast)]
    commands = [f"ip addr add {item} dev lo" for item in on_lo]
    ports = {link.end(box.name).interface: port for link, port in _ports(lab, box)}
    for link, port in _ports(lab, box):
        commands += [f"ip addr add {item} dev {port}" for item in link.end(box.name).addresses]
    if not box.is_router:
        for route in box.static:
            family = "-6 " if route.to.version == 6 else ""
            for hop in route.via[:1]:
                via = f" via {hop.address}" if hop.address is not None else ""
                device = f" dev {ports[hop.interface]}" if hop.interface else ""
                commands.append(f"ip {family}route replace {route.to}{via}{device}")
    return commands


# --- import --------------------------------------------------------------------------------

_LABEL = re.compile(r"[^a-z0-9-]+")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_ROUTE = re.compile(r"ip (?:-[46] )?route (?:add|replace) (\S+) via (\S+)(?: dev \S+)?$")
_LINK_UP = re.compile(r"^ip link set (?:dev )?\S+ up$")
_ADDRESS = re.compile(r"ip (?:-[46] )?addr(?:ess)? add (\S+) dev (\S+)")
_NODE_KEYS_UNDERSTOOD = {"kind", "image", "binds", "exec", "mtu", "sysctls", "labels", "group"}


def import_lab(document: Any, *, name: str) -> Import:
    """A lab file from a parsed containerlab topology; ConfigError when it is none.

    Kept: nodes, links, bridges, addresses set by `exec`, FRR configurations bound in.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("topology"), Mapping):
        raise ConfigError(
            f"cannot import `{name}`: it has no `topology`",
            hint="a containerlab file has `name` and `topology: {nodes, links}`",
        )
    topology = document["topology"]
    nodes = topology.get("nodes") or {}
    if not isinstance(nodes, Mapping):
        raise ConfigError(
            f"cannot import `{name}`: `nodes` is neither containerlab's mapping nor munet's list",
            hint="containerlab writes nodes: {r1: {kind: linux}}",
        )
    left_out: list[str] = [
        f"`{key}` of the file" for key in document if key not in ("name", "topology")
    ]
    left_out += [f"topology `{key}`" for key in topology if key not in _TOPOLOGY_KEYS_UNDERSTOOD]
    nodes = {node: _effective(topology, entry or {}) for node, entry in nodes.items()}
    bridges = {node for node, entry in nodes.items() if (entry or {}).get("kind") in _BRIDGES}
    addresses: dict[tuple[str, str], list[str]] = {}
    lines = [f"name = {quoted(label(str(document.get('name') or name)))}", ""]
    on_lo = [item for entry in nodes.values() for item in _loopback_of(entry or {})]
    shared = {item for item in on_lo if on_lo.count(item) > 1}
    for node, entry in nodes.items():
        if node not in bridges:
            lines += _import_node(str(node), entry or {}, addresses, left_out, shared)
        if _frr_conf(entry):
            # Its addresses may be in there: none are made up for it.
            own = [str(node)]
            for link in topology.get("links") or []:
                for end in map(_endpoint, link.get("endpoints") or []):
                    if end is not None and end[0] in own:
                        addresses.setdefault(end, [])
    lines += _import_links(topology.get("links") or [], bridges, addresses, left_out)
    return Import("\n".join(lines).rstrip() + "\n", tuple(left_out))


_BRIDGES = ("bridge", "ovs-bridge")
_TOPOLOGY_KEYS_UNDERSTOOD = ("nodes", "links", "kinds", "groups", "defaults")


def _effective(topology: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """A node with what its group, its kind and the defaults say, the nearest first."""
    defaults = topology.get("defaults") or {}
    group = (topology.get("groups") or {}).get(entry.get("group")) or {}
    kind = entry.get("kind") or group.get("kind") or defaults.get("kind") or "linux"
    by_kind = (topology.get("kinds") or {}).get(kind) or {}
    return {**defaults, **by_kind, **group, **entry, "kind": kind}


def label(name: str) -> str:
    """`name` as a DNS label."""
    return _LABEL.sub("-", name.lower()).strip("-")[:63].strip("-") or "lab"


def _loopback_of(entry: Mapping[str, Any]) -> list[str]:
    """Addresses that a node's commands put on lo."""
    found = (_ADDRESS.search(str(command)) for command in entry.get("exec") or [])
    return [match[1] for match in found if match is not None and match[2] == "lo"]


def _import_node(
    name: str,
    entry: Mapping[str, Any],
    addresses: dict[tuple[str, str], list[str]],
    left_out: list[str],
    shared: set[str],
) -> list[str]:
    lines = [f"[box.{label(name)}]"]
    routes = []
    for command in entry.get("exec") or []:
        if found := _ADDRESS.search(str(command)):
            if found[2] != "lo":
                addresses.setdefault((name, found[2]), []).append(found[1])
        elif found := _ROUTE.search(str(command)):
            zero = "::/0" if ":" in found[2] else "0.0.0.0/0"
            to = zero if found[1] == "default" else found[1]
            routes.append(f"{{ to = {quoted(to)}, via = {quoted(found[2])} }}")
        elif not _LINK_UP.search(str(command)):  # links are up
            left_out.append(f"node `{name}`: command `{command}`")
    loopback = _loopback_of(entry)
    for key, items in (
        ("loopback", [item for item in loopback if item not in shared]),
        ("anycast", [item for item in loopback if item in shared]),
    ):
        if items:
            lines.append(f"{key} = [{', '.join(map(quoted, items))}]")
    if routes:
        lines.append(f"static = [{', '.join(routes)}]")
    if config := _frr_conf(entry):
        lines.append(f"config = {quoted(config)}")
    for bind in entry.get("binds") or []:
        _source, _, target = str(bind).partition(":")
        if not target.startswith("/etc/frr/"):
            left_out.append(f"node `{name}`: bind `{bind}`")
    if entry["kind"] not in ("linux", "frr"):
        left_out.append(f"node `{name}`: kind `{entry['kind']}`: it becomes a plain box")
    understood = _NODE_KEYS_UNDERSTOOD | ({"startup-config"} if _is_started_by(entry) else set())
    left_out += [f"node `{name}`: `{key}`" for key in entry if key not in understood]
    return [*lines, ""]


def _frr_conf(entry: Mapping[str, Any]) -> str | None:
    """The file that a node's frr.conf comes from."""
    for bind in entry.get("binds") or []:
        source, _, target = str(bind).partition(":")
        if target.split(":")[0] == "/etc/frr/frr.conf":
            return source
    return str(entry["startup-config"]) if _is_started_by(entry) else None


def _is_started_by(entry: Mapping[str, Any]) -> bool:
    return entry["kind"] == "frr" and "startup-config" in entry


def _import_links(
    links: list[Any],
    bridges: set[str],
    addresses: Mapping[tuple[str, str], list[str]],
    left_out: list[str],
) -> list[str]:
    lines: list[str] = []
    ports: dict[str, list[tuple[str, str]]] = {bridge: [] for bridge in bridges}
    for link in links:
        ends = [_endpoint(item) for item in (link.get("endpoints") or [])]
        if len(ends) != 2 or None in ends or link.get("type", "veth") != "veth":
            left_out.append(f"link {link.get('type', '')} {link.get('endpoints', '')}".strip())
            continue
        pair = [end for end in ends if end is not None]
        on_bridge = [end for end in pair if end[0] in bridges]
        if on_bridge:
            ports[on_bridge[0][0]] += [end for end in pair if end[0] not in bridges]
        elif any(end[0] in ("host", "mgmt-net", "macvlan") for end in pair):
            left_out.append(f"link to the host: {pair[0][0]}, {pair[1][0]}")
        else:
            lines += link_lines(pair, None, addresses, mtu=link.get("mtu"))
    for bridge, members in sorted(ports.items()):
        if len(members) >= 2:
            lines += link_lines(members, bridge, addresses)
        else:
            left_out.append(f"bridge `{bridge}`: fewer than two nodes are on it")
    return lines


def _endpoint(item: Any) -> tuple[str, str] | None:
    if isinstance(item, Mapping):
        return str(item.get("node")), str(item.get("interface"))
    node, colon, port = str(item).partition(":")
    return (node, port) if colon else None


def link_lines(
    ends: list[tuple[str, str]],
    name: str | None,
    addresses: Mapping[tuple[str, str], list[str]],
    *,
    mtu: Any = None,
    subnet: str | None = None,
) -> list[str]:
    """A `[[link]]` table; addresses when those of an end are known, else the subnet if it is."""
    lines = ["[[link]]", f"ends = [{', '.join(quoted(label(node)) for node, _ in ends)}]"]
    devices = [device for _, device in ends]
    if all(_DEVICE.fullmatch(device) for device in devices):
        # Configurations that come along speak of them.
        lines.append(f"interfaces = [{', '.join(map(quoted, devices))}]")
    if name is not None:
        lines.append(f"name = {quoted(label(name))}")
    given = [addresses.get(end, []) for end in ends]
    if any(end in addresses for end in ends):
        rows = (f"[{', '.join(map(quoted, row))}]" for row in given)
        lines.append(f"addresses = [{', '.join(rows)}]")
    elif subnet is not None:
        lines.append(f"subnet = {quoted(subnet)}")
    if mtu and mtu != 1500:
        lines.append(f"mtu = {mtu}")
    return [*lines, ""]
