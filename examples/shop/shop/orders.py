"""Products and orders: in PostgreSQL, or in a SQLite file beside the shop when there is none.

Owns: the tables and every SQL statement. Must never: know of pages or carts.
One connection per operation: on a loopback that costs little and nothing has to be mended when
the server was restarted.

Example::

    orders = open_orders(settings, folder=Path(".data"), patience=20.0)
    orders.place({"assam": 2})
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shop.settings import Product, Settings

TABLES = (
    """create table if not exists product
       (sku text primary key, name text not null, cents integer not null)""",
    """create table if not exists placed
       (number {serial}, items text not null, cents integer not null)""",
)


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it was placed."""

    number: int
    items: str
    """In words: "2 x Assam, 1 x Sencha"."""
    cents: int


class Orders:
    """The shelf and the order book, over any DB-API connection."""

    def __init__(
        self, kind: str, *, connect: Callable[[], AbstractContextManager[Any]], mark: str
    ) -> None:
        """`kind` is shown to people; `connect` opens a transaction; `mark` is a placeholder."""
        self.kind = kind
        self._connect = connect
        self._mark = mark

    def prepare(self, stock: tuple[Product, ...], *, serial: str) -> None:
        """Make the tables where they are missing and fill an empty shelf with `stock`."""
        with self._connect() as connection:
            for statement in TABLES:
                connection.execute(statement.format(serial=serial))
            if connection.execute("select count(*) from product").fetchone()[0] == 0:
                for product in stock:
                    connection.execute(
                        self._sql("insert into product (sku, name, cents) values (?, ?, ?)"),
                        (product.sku, product.name, product.cents),
                    )

    def products(self) -> list[Product]:
        """Everything on the shelf, cheapest first."""
        with self._connect() as connection:
            rows = connection.execute("select sku, name, cents from product order by cents, sku")
            return [Product(*row) for row in rows.fetchall()]

    def place(self, cart: Mapping[str, int]) -> Order:
        """Write an order for `cart` (article number to count).

        Raises ValueError when nothing in the cart is sold here.
        """
        wanted = [
            (product, cart[product.sku]) for product in self.products() if product.sku in cart
        ]
        if not wanted:
            raise ValueError("the cart is empty")
        items = ", ".join(f"{count} x {product.name}" for product, count in wanted)
        cents = sum(product.cents * count for product, count in wanted)
        with self._connect() as connection:
            number = connection.execute(
                self._sql("insert into placed (items, cents) values (?, ?) returning number"),
                (items, cents),
            ).fetchone()[0]
        return Order(number=number, items=items, cents=cents)

    def placed(self) -> list[Order]:
        """Every order, the newest first."""
        with self._connect() as connection:
            rows = connection.execute(
                "select number, items, cents from placed order by number desc"
            )
            return [Order(*row) for row in rows.fetchall()]

    def _sql(self, statement: str) -> str:
        return statement.replace("?", self._mark)


def open_orders(settings: Settings, *, folder: Path, patience: float) -> Orders:
    """Orders in PostgreSQL if it answers within `patience` seconds, else in SQLite in `folder`."""
    return _in_postgres(settings, patience=patience) or open_sqlite(settings, folder=folder)


def _in_postgres(settings: Settings, *, patience: float) -> Orders | None:
    try:
        import psycopg  # noqa: PLC0415 (optional: the shop works without it)
    except ImportError:
        return None
    server = settings.database

    def connect() -> AbstractContextManager[Any]:
        return psycopg.connect(
            host=server.host,
            port=server.port,
            dbname=server.name,
            user=server.user,
            connect_timeout=5,
        )

    orders = Orders(f"PostgreSQL at {server.host}:{server.port}", connect=connect, mark="%s")
    deadline = time.monotonic() + patience
    while True:
        try:
            orders.prepare(settings.stock, serial="serial primary key")
        except psycopg.OperationalError:
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.1)
        else:
            return orders


def open_sqlite(settings: Settings, *, folder: Path) -> Orders:
    """Orders in a SQLite file in `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def connect() -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(folder / "shop.sqlite")) as connection, connection:
            yield connection

    orders = Orders("SQLite in .data (no PostgreSQL here)", connect=connect, mark="?")
    orders.prepare(settings.stock, serial="integer primary key")
    return orders
