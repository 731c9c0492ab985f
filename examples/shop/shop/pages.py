"""The shop's pages: values in, HTML out.

Owns: every byte of markup and the escaping of everything that is put into it. Must never: query a
store or read a request.

Example::

    page = shelf_page(settings, products, cart={}, visits=1, kinds=("SQLite", "memory"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from shop.orders import Order
from shop.settings import Product, Settings

STYLE = """
:root { color-scheme: light dark; --accent: ACCENT }
body { font: 1.05rem/1.5 system-ui, sans-serif }
body { max-width: 42rem; margin: 2rem auto; padding: 0 1rem }
h1 { color: var(--accent) } nav a { margin-right: 1rem }
table { width: 100%; border-collapse: collapse }
td, th { text-align: left; padding: .4rem .2rem }
td.price, th.price { text-align: right; font-variant-numeric: tabular-nums }
tr + tr { border-top: 1px solid #8884 }
button { font: inherit; color: #fff; background: var(--accent) }
button { border: 0; border-radius: .3rem; padding: .2rem .8rem }
footer { margin-top: 2rem; opacity: .75; font-size: .9rem }
"""


def shelf_page(
    settings: Settings,
    products: Sequence[Product],
    *,
    cart: Mapping[str, int],
    visits: int,
    kinds: tuple[str, str],
) -> str:
    """The front page: what is sold, what is in the cart, how often the shop was visited."""
    rows = "".join(
        f"<tr><td>{escape(product.name)}</td><td class=price>{_price(product.cents)}</td>"
        f"<td><form method=post action=/cart>"
        f"<input type=hidden name=sku value='{escape(product.sku)}'>"
        f"<button>Add<span hidden> {escape(product.name)}</span></button></form></td></tr>"
        for product in products
    )
    count = sum(cart.values())
    order = "<form method=post action=/orders><button>Order</button></form>" if count else ""
    body = (
        f"<table><thead><tr><th scope=col>Tea<th scope=col class=price>Price<th scope=col></thead>"
        f"<tbody>{rows}</tbody></table>"
        f"<p id=cart>In your cart: {count}</p>{order}<p id=visits>Visit number {visits}.</p>"
    )
    return _page(settings, "Shelf", body, kinds=kinds)


def orders_page(settings: Settings, orders: Sequence[Order], *, kinds: tuple[str, str]) -> str:
    """The order book, newest first."""
    rows = "".join(
        f"<tr><td>{order.number}</td><td>{escape(order.items)}</td>"
        f"<td class=price>{_price(order.cents)}</td></tr>"
        for order in orders
    )
    table = (
        "<table><thead><tr><th scope=col>Number<th scope=col>Items"
        f"<th scope=col class=price>Sum</thead><tbody>{rows}</tbody></table>"
    )
    return _page(settings, "Orders", table if orders else "<p>No orders yet.</p>", kinds=kinds)


def problem_page(settings: Settings, title: str, text: str, *, kinds: tuple[str, str]) -> str:
    """What went wrong, in the shop's own dress."""
    return _page(settings, title, f"<p>{escape(text)}</p>", kinds=kinds)


def _page(settings: Settings, title: str, body: str, *, kinds: tuple[str, str]) -> str:
    style = STYLE.replace("ACCENT", settings.accent)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)} - {escape(settings.title)}</title><style>{style}</style>"
        f"<header><h1>{escape(settings.title)}</h1>"
        "<nav><a href=/>Shelf</a><a href=/orders>Orders</a></nav></header>"
        f"<main><h2>{escape(title)}</h2>{body}</main>"
        f"<footer>Orders in {escape(kinds[0])}; carts in {escape(kinds[1])}.</footer></html>\n"
    )


def _price(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d} EUR"
