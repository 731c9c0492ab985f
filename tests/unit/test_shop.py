"""The example shop, with SQLite and memory behind it."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

SHOP = Path(__file__).resolve().parents[2] / "examples" / "shop"
# The shop is an example, not a part of the installed package.
sys.path.insert(0, str(SHOP))

from shop.carts import MemoryCarts  # noqa: E402
from shop.orders import Order, Orders, open_sqlite  # noqa: E402
from shop.pages import orders_page, shelf_page  # noqa: E402
from shop.settings import Product, Settings, read_settings  # noqa: E402
from shop.web import FORM_LIMIT, ShopServer  # noqa: E402

KINDS = ("SQLite", "memory")


@pytest.fixture(scope="module")
def settings() -> Settings:
    """The committed configuration."""
    return read_settings(SHOP / "shop.toml")


@pytest.fixture
def orders(settings: Settings, tmp_path: Path) -> Orders:
    """An order book in a file of the test's own."""
    return open_sqlite(settings, folder=tmp_path)


@pytest.fixture
def served(settings: Settings, orders: Orders) -> Iterator[http.client.HTTPConnection]:
    """A connection to a running shop, on any free port."""
    with ShopServer(replace(settings, port=0), orders, MemoryCarts()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        connection = http.client.HTTPConnection("localhost", server.server_address[1], timeout=10)
        yield connection
        connection.close()
        server.shutdown()
        thread.join()


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: str = "",
    **headers: str,
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of one answer."""
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def test_the_committed_configuration_says_the_usual_ports(settings: Settings) -> None:
    """What the demo proves rests on this."""
    places = [(server.host, server.port) for server in (settings.database, settings.redis)]

    assert (settings.port, places) == (3000, [("localhost", 5432), ("localhost", 6379)])


def test_an_order_is_written_and_priced(orders: Orders) -> None:
    """Counts times prices, what is not sold here left out."""
    placed = orders.place({"assam": 2, "rooibos": 1, "coffee": 9})

    assert (placed, orders.placed()) == (
        Order(1, "1 x Rooibos, for the evening, 2 x Assam, strong and malty", 1920),
        [placed],
    )


def test_an_empty_cart_is_no_order(orders: Orders) -> None:
    """Nothing is written."""
    with pytest.raises(ValueError, match="empty"):
        orders.place({})

    assert orders.placed() == []


def test_opening_twice_keeps_the_orders(settings: Settings, tmp_path: Path) -> None:
    """The shelf is stocked once, the order book stays."""
    open_sqlite(settings, folder=tmp_path).place({"assam": 1})
    again = open_sqlite(settings, folder=tmp_path)

    assert (len(again.products()), len(again.placed())) == (3, 1)


@given(st.text(), st.text())
def test_hostile_names_stay_text(name: str, sku: str) -> None:
    """Whatever a product is called, the page has as many tags as with a harmless name."""
    settings = read_settings(SHOP / "shop.toml")

    def tags(product: Product) -> tuple[int, int]:
        page = shelf_page(settings, [product], cart={}, visits=1, kinds=KINDS)
        return page.count("<"), page.count("'")

    assert tags(Product("tea", "tea", 1)) == tags(Product(sku, name, 1))


@given(st.text())
def test_hostile_orders_stay_text(items: str) -> None:
    """The same for the order book."""
    settings = read_settings(SHOP / "shop.toml")

    def tags(text: str) -> int:
        return orders_page(settings, [Order(1, text, 1)], kinds=KINDS).count("<")

    assert tags("tea") == tags(items)


def test_a_visit_from_shelf_to_order(served: http.client.HTTPConnection) -> None:
    """Look, add, order: each post is answered by a redirect, and the order is there."""
    _, headers, _ = ask(served, "GET", "/")
    cookie = headers["Set-Cookie"].partition(";")[0]
    added = ask(served, "POST", "/cart", "sku=assam", Cookie=cookie)
    ordered = ask(served, "POST", "/orders", "", Cookie=cookie)
    _, _, book = ask(served, "GET", "/api/orders")

    assert [(added[0], added[1]["Location"]), (ordered[0], ordered[1]["Location"]), book] == [
        (303, "/"),
        (303, "/orders"),
        '{"orders": [{"number": 1, "items": "1 x Assam, strong and malty", "cents": 690}]}\n',
    ]


def test_the_visitor_cookie_is_guarded(served: http.client.HTTPConnection) -> None:
    """Scripts cannot read it and other sites cannot send it."""
    _, headers, _ = ask(served, "GET", "/")

    assert headers["Set-Cookie"].partition("; ")[2] == "Path=/; HttpOnly; SameSite=Strict"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nothing", "", 404),
        ("GET", "/cart", "", 405),
        ("POST", "/", "", 405),
        ("POST", "/cart", "sku=coffee", 400),
        ("POST", "/cart", "sku=" + "x" * FORM_LIMIT, 400),
        ("POST", "/orders", "", 409),
    ],
)
def test_what_cannot_be_done_is_said(
    served: http.client.HTTPConnection, method: str, path: str, body: str, status: int
) -> None:
    """The right status and a page in the shop's own dress."""
    got, _, page = ask(served, method, path, body)

    assert (got, "<h1>The Tea Shop</h1>" in page) == (status, True)


def test_a_head_has_the_headers_of_a_get_and_no_body(served: http.client.HTTPConnection) -> None:
    """And the connection stays usable."""
    _, got, page = ask(served, "GET", "/orders")
    _, head, nothing = ask(served, "HEAD", "/orders")

    assert (head["Content-Length"], nothing) == (got["Content-Length"], "")
    assert len(page) == int(got["Content-Length"])


def test_health_says_what_is_behind_the_shop(served: http.client.HTTPConnection) -> None:
    """Without PostgreSQL and Redis the shop works and says so."""
    _, _, body = ask(served, "GET", "/health")

    assert body == (
        '{"healthy": true, "orders": "SQLite in .data (no PostgreSQL here)", '
        '"carts": "memory (no Redis here)"}\n'
    )
