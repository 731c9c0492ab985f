"""A small web shop: products and orders in PostgreSQL, carts and visits in Redis, pages in HTML.

It is an ordinary program for one machine and knows nothing of loopbox: its committed configuration
(`shop.toml`) says localhost:5432, localhost:6379 and port 3000, in every checkout.
"""
