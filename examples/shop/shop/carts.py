"""Carts and visits: in Redis, or in this process when there is none.

Owns: the keys in Redis. Must never: know of prices. A cart is a mapping of article number to count,
kept for one visitor, who is known by a random word in a cookie.

Example::

    carts = open_carts(settings, patience=20.0)
    carts.add("visitor", "assam")
    carts.cart("visitor")       # {"assam": 1}
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any, Protocol

from shop.settings import Settings

CART_LIFE_S = 7 * 24 * 3600


class Carts(Protocol):
    """What the pages need to know of visitors."""

    kind: str

    def visit(self) -> int:
        """Count one more visit and return how many there were."""
        ...

    def add(self, visitor: str, sku: str) -> None:
        """Put one more `sku` into the visitor's cart."""
        ...

    def cart(self, visitor: str) -> dict[str, int]:
        """Article number to count."""
        ...

    def empty(self, visitor: str) -> None:
        """Forget the visitor's cart."""
        ...


class RedisCarts:
    """Carts as hashes `cart:VISITOR`, visits as the counter `visits`."""

    def __init__(self, connection: Any, *, kind: str) -> None:
        self.kind = kind
        self._redis = connection

    def visit(self) -> int:
        return int(self._redis.incr("visits"))

    def add(self, visitor: str, sku: str) -> None:
        self._redis.hincrby(f"cart:{visitor}", sku, 1)
        self._redis.expire(f"cart:{visitor}", CART_LIFE_S)

    def cart(self, visitor: str) -> dict[str, int]:
        found = self._redis.hgetall(f"cart:{visitor}")
        return {sku.decode(): int(count) for sku, count in found.items()}

    def empty(self, visitor: str) -> None:
        self._redis.delete(f"cart:{visitor}")


class MemoryCarts:
    """Carts that last as long as the process."""

    kind = "memory (no Redis here)"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visits = 0
        self._carts: dict[str, Counter[str]] = {}

    def visit(self) -> int:
        with self._lock:
            self._visits += 1
            return self._visits

    def add(self, visitor: str, sku: str) -> None:
        with self._lock:
            self._carts.setdefault(visitor, Counter())[sku] += 1

    def cart(self, visitor: str) -> dict[str, int]:
        with self._lock:
            return dict(self._carts.get(visitor, {}))

    def empty(self, visitor: str) -> None:
        with self._lock:
            self._carts.pop(visitor, None)


def open_carts(settings: Settings, *, patience: float) -> Carts:
    """Carts in Redis if it answers within `patience` seconds, else in memory."""
    return _in_redis(settings, patience=patience) or MemoryCarts()


def _in_redis(settings: Settings, *, patience: float) -> Carts | None:
    try:
        import redis  # noqa: PLC0415 (optional: the shop works without it)
    except ImportError:
        return None
    server = settings.redis
    connection = redis.Redis(host=server.host, port=server.port)
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.ping()
        except redis.ConnectionError:
            if time.monotonic() >= deadline:
                connection.close()
                return None
            time.sleep(0.1)
        else:
            return RedisCarts(connection, kind=f"Redis at {server.host}:{server.port}")
