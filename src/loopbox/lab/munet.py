"""Lab files from munet topologies (YAML, JSON or TOML; https://github.com/LabNConsulting/munet).

Owns: which parts of a munet file map to a lab, and the list of what does not.

Must never: run munet, read the file (`import_munet` takes parsed data).

Example::

    found = import_munet({"topology": {"nodes": [...], "networks": [...]}}, name="munet.yaml")
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any

from loopbox.errors import ConfigError
from loopbox.lab.containerlab import Import, label, link_lines
from loopbox.lab.tables import quoted

_NODE_KEYS_UNDERSTOOD = {"name", "connections", "kind", "id"}
_CONNECTION_KEYS_UNDERSTOOD = {"to", "name", "ip", "remote-name"}
_TOPOLOGY_KEYS_UNDERSTOOD = {"nodes", "networks", "loopbacks-autonumber", "networks-autonumber"}


def import_munet(document: Any, *, name: str) -> Import:
    """A lab file from a parsed munet topology; ConfigError when it is none.

    Kept: nodes, networks, point-to-point connections, addresses, automatic loopbacks.
    """
    topology = document.get("topology") if isinstance(document, Mapping) else None
    if not isinstance(topology, Mapping) or not isinstance(topology.get("nodes"), list):
        raise ConfigError(
            f"cannot import `{name}`: it has no `topology` with a list of `nodes`",
            hint="a munet file has topology: {networks: [...], nodes: [...]}",
        )
    left_out = [f"`{key}` of the file" for key in document if key not in ("topology", "version")]
    left_out += [f"topology `{key}`" for key in topology if key not in _TOPOLOGY_KEYS_UNDERSTOOD]
    auto = bool(topology.get("loopbacks-autonumber"))
    networks = {str(item.get("name")): item for item in topology.get("networks") or []}
    left_out += [
        f"network `{network}`: `{key}`"
        for network, item in networks.items()
        for key in item
        if key != "name" and not (key == "ip" and _subnet(item))
    ]
    on_network: dict[str, list[tuple[str, str]]] = {network: [] for network in networks}
    pairs: list[list[tuple[str, str]]] = []
    addresses: dict[tuple[str, str], list[str]] = {}
    lines = [f"name = {quoted(label(name.rpartition('/')[2].partition('.')[0]))}", ""]
    seen: set[frozenset[tuple[str, str]]] = set()
    for node in topology["nodes"]:
        own = str(node.get("name"))
        lines += _node_lines(own, node, auto=auto, left_out=left_out)
        for number, connection in enumerate(node.get("connections") or []):
            entry = connection if isinstance(connection, Mapping) else {"to": connection}
            to = str(entry.get("to"))
            here = (own, str(entry.get("name") or f"eth{number}"))
            left_out += [
                f"node `{own}`: `{key}` of its connection to `{to}`"
                for key in entry
                if key not in _CONNECTION_KEYS_UNDERSTOOD
            ]
            if ip := entry.get("ip"):
                addresses[here] = [ip] if isinstance(ip, str) else [str(item) for item in ip]
            if to in networks:
                on_network[to].append(here)
            else:
                far = (to, str(entry.get("remote-name") or ""))
                key = frozenset({(own, ""), (to, "")})
                if key not in seen:
                    seen.add(key)
                    pairs.append([here, far])
    for pair in pairs:
        lines += link_lines(pair, None, addresses)
    for network, ends in on_network.items():
        if len(ends) >= 2:
            lines += link_lines(ends, network, addresses, subnet=_subnet(networks[network]))
        else:
            left_out.append(f"network `{network}`: fewer than two nodes are on it")
    return Import("\n".join(lines).rstrip() + "\n", tuple(left_out))


def _subnet(network: Mapping[str, Any]) -> str | None:
    """The network's `ip` as a subnet, if it is one."""
    try:
        return str(ip_interface(str(network.get("ip"))).network)
    except ValueError:
        return None


def _node_lines(
    name: str, node: Mapping[str, Any], *, auto: bool, left_out: list[str]
) -> list[str]:
    lines = [f"[box.{label(name)}]"]
    if auto:
        lines.append('loopback = "auto"')
    if kind := node.get("kind"):
        left_out.append(f"node `{name}`: kind `{kind}`: it becomes a plain box")
    left_out += [f"node `{name}`: `{key}`" for key in node if key not in _NODE_KEYS_UNDERSTOOD]
    return [*lines, ""]
