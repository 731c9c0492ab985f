"""Reading topology files of others: which tool wrote it, and by which parser.

Owns: JSON, TOML and YAML to plain data (YAML needs PyYAML, an optional dependency), and the choice
between containerlab and munet.

Must never: map anything itself.

Example::

    import_topology(Path("dc.clab.yml")).text
"""

from __future__ import annotations

import importlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopbox.errors import ConfigError, HostError
from loopbox.lab.containerlab import Import, import_lab
from loopbox.lab.labfile import read_text
from loopbox.lab.munet import import_munet


def import_topology(path: Path) -> Import:
    """The lab file that the topology at `path` makes; ConfigError when it is not understood."""
    document = parse_data(read_text(path), path=path)
    topology = document.get("topology") if isinstance(document, Mapping) else None
    is_munet = isinstance(topology, Mapping) and isinstance(topology.get("nodes"), list)
    try:
        return (import_munet if is_munet else import_lab)(document, name=path.name)
    except (AttributeError, TypeError) as err:  # a value where a table should be, somewhere in it
        raise ConfigError(
            f"cannot import `{path}`: its topology is not built as containerlab's or munet's are",
            hint="nodes, links and connections are tables; check it with the tool it is for",
        ) from err


def parse_data(text: str, *, path: Path) -> Any:
    """The data of a JSON, TOML or YAML text, by the file's suffix."""
    try:
        if path.suffix == ".json":
            return json.loads(text)
        if path.suffix == ".toml":
            return tomllib.loads(text)
    except ValueError as err:
        raise ConfigError(f"cannot import `{path}`: {err}", hint="check the file") from err
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as err:
        raise HostError(
            f"cannot import `{path}`: reading YAML takes PyYAML, which is not installed",
            hint="pip install pyyaml, or convert the file to JSON",
        ) from err
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        line = getattr(getattr(err, "problem_mark", None), "line", 0) + 1
        problem = getattr(err, "problem", None) or "not YAML"
        raise ConfigError(
            f"cannot import `{path}`: line {line}: {problem}", hint="check the file"
        ) from err
