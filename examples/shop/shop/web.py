"""HTTP for the shop: routes, forms, cookies, status codes.

Owns: what a request may ask for (the ROUTES table) and the headers of every answer. Must never:
contain SQL or markup.

Example::

    server = make_server(settings, orders, carts)
    server.serve_forever()
"""

from __future__ import annotations

import http.cookies
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from shop import pages
from shop.carts import Carts
from shop.orders import Orders
from shop.settings import Settings

FORM_LIMIT = 4096
"""Bytes of a form that are read; a longer one is refused."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"


class ShopServer(ThreadingHTTPServer):
    """Listens on localhost, as a program under development should."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: Settings, orders: Orders, carts: Carts) -> None:
        super().__init__(("localhost", settings.port), ShopHandler)
        self.settings = settings
        self.orders = orders
        self.carts = carts
        self.kinds = (orders.kind, carts.kind)


class ShopHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "shop"
    sys_version = ""
    timeout = 30
    server: ShopServer

    def shelf(self) -> None:
        server = self.server
        page = pages.shelf_page(
            server.settings,
            server.orders.products(),
            cart=server.carts.cart(self._visitor()),
            visits=server.carts.visit(),
            kinds=server.kinds,
        )
        self._answer(page)

    def add_to_cart(self) -> None:
        sku = self._form().get("sku", "")
        if sku not in {product.sku for product in self.server.orders.products()}:
            self._problem(HTTPStatus.BAD_REQUEST, "There is no such tea on the shelf.")
            return
        self.server.carts.add(self._visitor(), sku)
        self._redirect("/")

    def orders(self) -> None:
        server = self.server
        page = pages.orders_page(server.settings, server.orders.placed(), kinds=server.kinds)
        self._answer(page)

    def place_order(self) -> None:
        self._form()
        visitor = self._visitor()
        try:
            self.server.orders.place(self.server.carts.cart(visitor))
        except ValueError:
            self._problem(HTTPStatus.CONFLICT, "Your cart is empty.")
            return
        self.server.carts.empty(visitor)
        self._redirect("/orders")

    def list_products(self) -> None:
        self._answer_json({"products": [asdict(entry) for entry in self.server.orders.products()]})

    def list_orders(self) -> None:
        self._answer_json({"orders": [asdict(entry) for entry in self.server.orders.placed()]})

    def health(self) -> None:
        orders, carts = self.server.kinds
        count = len(self.server.orders.products())
        self._answer_json({"healthy": count > 0, "orders": orders, "carts": carts})

    ROUTES: ClassVar[dict[str, dict[str, Callable[[ShopHandler], None]]]] = {
        "/": {"GET": shelf},
        "/cart": {"POST": add_to_cart},
        "/orders": {"GET": orders, "POST": place_order},
        "/api/products": {"GET": list_products},
        "/api/orders": {"GET": list_orders},
        "/health": {"GET": health},
    }

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_HEAD(self) -> None:
        self._dispatch("GET")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing per request: the terminal belongs to the developer."""

    def _dispatch(self, method: str) -> None:
        self._new_cookie = ""
        verbs = self.ROUTES.get(urlsplit(self.path).path)
        if verbs is None:
            self._problem(HTTPStatus.NOT_FOUND, "There is no such page.")
        elif method not in verbs:
            self.close_connection = True  # a body that nobody reads may follow
            self._problem(HTTPStatus.METHOD_NOT_ALLOWED, "Not that way.", allow=", ".join(verbs))
        else:
            verbs[method](self)

    def _visitor(self) -> str:
        """The word that tells this browser from others; a new one is set as a cookie."""
        cookies = http.cookies.SimpleCookie(self.headers.get("Cookie", ""))
        known = cookies["visitor"].value if "visitor" in cookies else ""
        if re.fullmatch(r"[0-9a-f]{32}", known):
            return known
        visitor = secrets.token_hex(16)
        self._new_cookie = f"visitor={visitor}; Path=/; HttpOnly; SameSite=Strict"
        return visitor

    def _form(self) -> dict[str, str]:
        """The fields of a posted form; empty when it is none, or longer than FORM_LIMIT."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > FORM_LIMIT:
            self.close_connection = True
            return {}
        body = self.rfile.read(int(length)).decode("ascii", errors="replace")
        return {name: values[0] for name, values in parse_qs(body).items()}

    def _problem(self, status: HTTPStatus, text: str, *, allow: str = "") -> None:
        server = self.server
        page = pages.problem_page(server.settings, status.phrase, text, kinds=server.kinds)
        self._answer(page, status=status, headers={"Allow": allow} if allow else {})

    def _redirect(self, place: str) -> None:
        self._answer("", status=HTTPStatus.SEE_OTHER, headers={"Location": place})

    def _answer_json(self, value: object) -> None:
        self._answer(json.dumps(value) + "\n", content_type="application/json")

    def _answer(
        self,
        text: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        content_type: str = "text/html; charset=utf-8",
        headers: dict[str, str] | None = None,
    ) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        if self._new_cookie:
            self.send_header("Set-Cookie", self._new_cookie)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
