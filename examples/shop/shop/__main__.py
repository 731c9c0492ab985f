"""`python -m shop [--patience SECONDS]`: open the stores, then serve until INT or TERM."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from shop.carts import open_carts
from shop.orders import open_orders
from shop.settings import read_settings
from shop.web import ShopServer


def main() -> int:
    """Serve; returns the exit status: 1 when the port is taken."""
    parser = argparse.ArgumentParser(prog="shop", description="A small web shop on localhost.")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for PostgreSQL and Redis before doing without",
    )
    patience = parser.parse_args().patience
    settings = read_settings(Path("shop.toml"))
    orders = open_orders(settings, folder=Path(".data"), patience=patience)
    carts = open_carts(settings, patience=patience)
    try:
        server = ShopServer(settings, orders, carts)
    except OSError as err:
        print(f"shop: cannot listen on localhost:{settings.port}: {err.strerror}", file=sys.stderr)
        return 1
    print(f"{settings.title}: http://localhost:{settings.port}/", flush=True)
    print(f"orders in {orders.kind}; carts in {carts.kind}", flush=True)

    def stop(_number: int, _frame: object) -> None:
        # shutdown() waits for the loop that this very thread runs, so another one has to call it.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with server:
        server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
