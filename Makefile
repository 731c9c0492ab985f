# make demo    two checkouts of a web shop at once, on the same ports (Ctrl-C ends it)
# make test    style, types and all tests, as CI runs them (PYTEST_ARGS=... goes to pytest)
# make check   style and types only
# make bench   measure against direct connections and the peers; writes docs/benchmarks.md
# make docs    write docs/commands.md from the commands' own help
# make venv    the development environment in .venv
# make clean   remove what the other targets made

BIN := .venv/bin
STYLED := src tests bench examples docs
.PHONY: demo demo-check test check bench docs venv compiled clean

demo: .venv/shop-ready compiled
	@.ci/packages --wish demo
	@$(BIN)/python examples/demo.py $(ARGS)

demo-check: .venv/shop-ready compiled
	@.ci/packages --wish demo
	@$(BIN)/python examples/demo.py --check

test:
	@.ci/test

check: .venv/shop-ready
	$(BIN)/ruff check $(STYLED)
	$(BIN)/ruff format --check $(STYLED)
	MYPYPATH=src $(BIN)/mypy src bench examples/demo.py docs/render_commands.py
	MYPYPATH=examples/shop $(BIN)/mypy examples/shop/shop

bench: .venv/ready compiled
	@.ci/packages --wish bench
	@$(BIN)/python -m bench $(ARGS)

docs: .venv/ready
	@$(BIN)/python docs/render_commands.py

venv: .venv/ready

# As pip leaves it for a user. With PYTHONDONTWRITEBYTECODE set every command would compile itself anew.
compiled: .venv/ready
	@umask 022; $(BIN)/python -m compileall -q src

.venv/ready: pyproject.toml setup.py $(wildcard src/native/*)
	@.ci/packages build
	@umask 022; [ -x $(BIN)/python ] || "$$(.ci/python)" -m venv .venv
	@umask 022; $(BIN)/pip install -q --disable-pip-version-check -U 'pip>=25.1'
	@umask 022; $(BIN)/pip install -q --disable-pip-version-check --group dev -e .
	@touch $@

.venv/shop-ready: .venv/ready examples/shop/requirements.txt
	@umask 022; $(BIN)/pip install -q --disable-pip-version-check -r examples/shop/requirements.txt \
	  || echo "doing without the drivers of PostgreSQL and Redis" >&2
	@touch $@

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests bench examples -name __pycache__ -prune -exec rm -rf {} +
	find src -name '*.so' -delete
