"""The shop's one configuration file as a value.

Owns: the names and meaning of the keys in `shop.toml`. Must never: read the environment, compute a
port, or guess another one when the port is taken.

Example::

    settings = read_settings(Path("shop.toml"))
    settings.database.port      # 5432
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Server:
    """A server that this shop is a client of."""

    host: str
    port: int
    name: str = ""
    """Database within the server; empty where there is no such thing."""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Product:
    """One article on the shelf."""

    sku: str
    name: str
    cents: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What `shop.toml` says."""

    title: str
    accent: str
    """A CSS colour."""
    port: int
    database: Server
    redis: Server
    stock: tuple[Product, ...]
    """The articles that an empty database starts with."""


def read_settings(path: Path) -> Settings:
    """Read `path`.

    Raises OSError, tomllib.TOMLDecodeError, KeyError or TypeError, each naming the spot.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return Settings(
        title=table["title"],
        accent=table["accent"],
        port=table["port"],
        database=Server(**table["database"]),
        redis=Server(**table["redis"]),
        stock=tuple(Product(**entry) for entry in table["stock"]),
    )
