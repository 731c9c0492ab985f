"""`make demo`: one web shop, checked out twice, both copies running on the same ports.

What it does: makes a small git repository of `examples/shop` in a temporary folder, clones it, adds
a worktree of the branch `fix-ui`, and says `loopbox run -- ./start` in both. Both copies listen on
localhost:3000, localhost:5432 and localhost:6379, as their committed configuration says; from the
host each is reached by name, and each has its own data. Ctrl-C ends it and leaves nothing behind.

With `--check` it uses both copies as their users would (curl, psql, redis-cli), says what it saw
and exits: 0 when all of it was right, 1 otherwise.

Must never: end, stop or remove anything it did not start; need root; fail for lack of PostgreSQL or
Redis.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHOP = Path(__file__).resolve().parent / "shop"
BRANCH = "fix-ui"
CHANGES = {
    'title = "The Tea Shop"': 'title = "The Tea House"',
    'accent = "#2f6f4f"': 'accent = "#8a4b2a"',
    "cents = 690": "cents = 590",
}
"""What the branch changes in `shop.toml`: words and a price, no port."""
START_LIMIT_S = 60.0
GIT_IDENTITY = {
    "GIT_AUTHOR_NAME": "demo",
    "GIT_AUTHOR_EMAIL": "demo@localhost",
    "GIT_COMMITTER_NAME": "demo",
    "GIT_COMMITTER_EMAIL": "demo@localhost",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One checkout of the shop, running in a box of its own."""

    folder: Path
    title: str
    name: str
    """The name that loopbox gave it."""
    address: str
    health: Mapping[str, Any]
    nameless: str | None
    """Why it is not served by name (somebody else holds the port on 127.0.0.1), if so."""

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        host = f"{self.name}.localhost" if self.nameless is None else self.address
        return f"http://{host}:3000/"

    @property
    def has_postgres(self) -> bool:
        """Whether its orders are in PostgreSQL (else in SQLite)."""
        return str(self.health["orders"]).startswith("PostgreSQL")

    @property
    def has_redis(self) -> bool:
        """Whether its carts are in Redis (else in memory)."""
        return str(self.health["carts"]).startswith("Redis")


class Loopbox:
    """The `loopbox` command that belongs to this Python."""

    def __init__(self) -> None:
        beside = Path(sys.executable).parent / "loopbox"
        found = str(beside) if beside.exists() else shutil.which("loopbox")
        if found is None:
            raise DemoError("the command `loopbox` is not installed here; try `make venv`")
        self.program = found

    def call(self, *arguments: str, folder: Path | None = None) -> str:
        """Run a command to its end; DemoError with its own words when it fails."""
        return call([self.program, *arguments], folder=folder)

    def start(self, command: str, *, folder: Path, log: Path) -> subprocess.Popen[bytes]:
        """`loopbox run -- COMMAND` in `folder`, in its own session: Ctrl-C is ours to handle."""
        with log.open("wb") as output:
            return subprocess.Popen(
                [self.program, "run", "--", command],
                cwd=folder,
                env=os.environ | {"PYTHON": sys.executable},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def is_keeper_up(self) -> bool:
        """Whether this user has a keeper already."""
        try:
            return bool(json.loads(self.call("--json", "keeper", "status")).get("running"))
        except (DemoError, ValueError):
            return False


def call(
    command: list[str], *, folder: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a command to its end and return what it printed; DemoError when it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise DemoError(f"`{' '.join(command)}`: {err}") from err
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise DemoError(f"`{' '.join(command)}` ended with status {done.returncode}: {said}")
    return done.stdout


def make_checkouts(folder: Path) -> dict[str, Path]:
    """A clone on `main` and a linked worktree on BRANCH; shop title to folder."""

    def git(*arguments: str, inside: Path) -> None:
        call(["git", *arguments], folder=inside, env=GIT_IDENTITY)

    origin = folder / "origin"
    shutil.copytree(SHOP, origin, ignore=shutil.ignore_patterns(".data", "__pycache__"))
    git("init", "-q", "-b", "main", inside=origin)
    git("add", "-A", inside=origin)
    git("commit", "-q", "-m", "A tea shop", inside=origin)
    git("checkout", "-q", "-b", BRANCH, inside=origin)
    settings = origin / "shop.toml"
    text = settings.read_text(encoding="utf-8")
    for old, new in CHANGES.items():
        text = text.replace(old, new)
    settings.write_text(text, encoding="utf-8")
    git("commit", "-q", "-a", "-m", "A new name, a new colour, a better price", inside=origin)
    git("checkout", "-q", "main", inside=origin)
    git("clone", "-q", str(origin), "shop", inside=folder)
    git("worktree", "add", "-q", str(folder / "shop-fix-ui"), BRANCH, inside=folder / "shop")
    return {"The Tea Shop": folder / "shop", "The Tea House": folder / "shop-fix-ui"}


@contextlib.contextmanager
def running_copies(loopbox: Loopbox, checkouts: Mapping[str, Path]) -> Iterator[list[Copy]]:
    """Start every checkout, wait until it serves, and end it with the block."""
    had_keeper = loopbox.is_keeper_up()
    started: dict[Path, subprocess.Popen[bytes]] = {}
    names: list[str] = []
    try:
        for folder in checkouts.values():
            say(f"    $ cd {folder.name} && loopbox run -- ./start")
            started[folder] = loopbox.start("./start", folder=folder, log=_log_of(folder))
        copies = []
        for title, folder in checkouts.items():
            name = _wait_for_name(loopbox, folder, started[folder])
            names.append(name)
            copies.append(_wait_for_copy(loopbox, folder, title, name))
        yield copies
    finally:
        for name in names:
            with contextlib.suppress(DemoError):
                loopbox.call("down", name)
        for process in started.values():
            _end(process)
        if not had_keeper:
            with contextlib.suppress(DemoError):
                loopbox.call("keeper", "stop")


def _wait_for_name(loopbox: Loopbox, folder: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            return str(json.loads(loopbox.call("--json", "show", folder=folder))["name"])
        except DemoError as err:
            if process.poll() is not None or time.monotonic() >= deadline:
                said = _log_of(folder).read_text(encoding="utf-8", errors="replace").strip()
                raise DemoError(said or str(err)) from err
        time.sleep(0.05)


def _wait_for_copy(loopbox: Loopbox, folder: Path, title: str, name: str) -> Copy:
    try:
        loopbox.call("wait", name, "3000", "--timeout", f"{START_LIMIT_S - 5:.0f}")
    except DemoError as err:
        said = _log_of(folder).read_text(encoding="utf-8", errors="replace").strip()
        raise DemoError(f"{err}\n{said}") from err
    address = loopbox.call("address", name).split()[0]
    is_reachable, nameless = _look_at_door(loopbox, name)
    if not is_reachable:
        raise DemoError(f"the host does not reach {name}: {nameless}")
    health = json.loads(curl(f"http://{address}:3000/health"))
    return Copy(
        folder=folder,
        title=title,
        name=name,
        address=address,
        health=health,
        nameless=nameless,
    )


def _look_at_door(loopbox: Loopbox, name: str) -> tuple[bool, str | None]:
    """Whether the host reaches the shop's port, and why it is not served by name, if so."""
    shown = json.loads(loopbox.call("--json", "show", name))
    [shop] = [one for one in shown["listeners"] if one["port"] == 3000]
    return shop["at"] is not None, shop.get("problem")


def _log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)


def curl(url: str, *options: str) -> str:
    """A page, by the real curl; DemoError unless it answers 2xx or 3xx within the deadline."""
    patience = ("--max-time", "10", "--retry", "5", "--retry-delay", "1", "--retry-connrefused")
    return call(["curl", "-sSf", "--noproxy", "*", *patience, *options, url])


def place_order(copy: Copy, *, sku: str, jar: Path) -> None:
    """What a visitor's browser does: look, put into the cart, order."""
    cookies = ("-b", str(jar), "-c", str(jar), "-o", os.devnull)
    curl(copy.url, *cookies)
    curl(f"{copy.url}cart", *cookies, "-d", f"sku={sku}")
    curl(f"{copy.url}orders", *cookies, "-d", "")


def psql(copy: Copy, question: str) -> str:
    """An answer of the copy's PostgreSQL, from the host, on the usual port."""
    command = ["psql", "-h", copy.address, "-p", "5432", "-U", "shop", "-d", "shop", "-Atc"]
    return call([*command, question]).strip()


def redis_cli(copy: Copy, *words: str) -> str:
    """An answer of the copy's Redis, from the host, on the usual port."""
    return call(["redis-cli", "-h", copy.address, "-p", "6379", *words]).strip()


def verify(loopbox: Loopbox, copies: list[Copy], folder: Path) -> bool:
    """Use both copies as their users would; print what was seen; whether all was right."""
    first, second = copies
    orders = {first.name: 2, second.name: 1}
    for copy in copies:
        for number in range(orders[copy.name]):
            place_order(copy, sku="assam", jar=folder / f"{copy.name}-{number}.jar")
    checks: list[tuple[str, Callable[[], tuple[Any, Any]]]] = []

    def add(text: str, expected: Any, actual: Callable[[], Any]) -> None:
        checks.append((text, lambda: (expected, actual())))

    for copy in copies:
        _add_page_checks(add, loopbox, copy, orders=orders[copy.name])
        _add_store_checks(add, copy, orders=orders[copy.name])
    right = True
    for text, compare in checks:
        try:
            expected, actual = compare()
        except DemoError as err:
            expected, actual = "an answer", str(err)
        is_right = expected == actual
        right = right and is_right
        say(f"  {'ok  ' if is_right else 'FAIL'} {text}")
        if not is_right:
            say(f"       expected {expected!r}, got {actual!r}")
    return right


Add = Callable[[str, Any, Callable[[], Any]], None]


def _add_page_checks(add: Add, loopbox: Loopbox, copy: Copy, *, orders: int) -> None:
    heading = f"<h1>{copy.title}</h1>"
    inside = [loopbox.program, "exec", copy.name, "--", "curl", "-sS", "http://localhost:3000/"]
    price = 590 if copy.title == "The Tea House" else 690
    if copy.nameless is None:
        add(f"curl {copy.url} shows {copy.title!r}", True, lambda: heading in curl(copy.url))
    else:
        say(f"  --   {copy.name} is not served by name: {copy.nameless}")
    add(
        f"curl http://{copy.address}:3000/ shows {copy.title!r}",
        True,
        lambda: heading in curl(f"http://{copy.address}:3000/"),
    )
    add(
        f"in box {copy.name}, http://localhost:3000/ shows the same",
        True,
        lambda: heading in call(inside),
    )
    add(
        f"{copy.name} has its own orders: {orders} of {price} cents",
        [price] * orders,
        lambda: [order["cents"] for order in json.loads(curl(f"{copy.url}api/orders"))["orders"]],
    )


def _add_store_checks(add: Add, copy: Copy, *, orders: int) -> None:
    if copy.has_postgres and shutil.which("psql"):
        add(
            f"psql -h {copy.address} -p 5432 counts {orders}",
            str(orders),
            lambda: psql(copy, "select count(*) from placed"),
        )
        add(
            f"that PostgreSQL keeps its files in {copy.folder.name}",
            str(copy.folder / ".data" / "postgres"),
            lambda: psql(copy, "show data_directory"),
        )
    if copy.has_redis and shutil.which("redis-cli"):
        add(
            f"redis-cli -h {copy.address} -p 6379 knows its own folder",
            str(copy.folder / ".data" / "redis"),
            lambda: redis_cli(copy, "config", "get", "dir").splitlines()[-1],
        )


def describe(loopbox: Loopbox, copies: list[Copy]) -> None:
    """Say where both copies are, in words a person can paste."""
    # As it can be pasted: from this folder, unless it is on PATH.
    program = Path(loopbox.program)
    if shutil.which(program.name) == str(program):
        program = Path(program.name)
    elif program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    say("\nBoth run now, on the same ports, with nothing configured:\n")
    for copy in copies:
        say(f"  {copy.title} ({copy.folder.name})")
        say(f"    browser    {copy.url}")
        if copy.nameless is not None:
            say(f"               (not by name: {copy.nameless})")
        if copy.has_postgres:
            say(f"    orders     psql -h {copy.address} -U shop shop")
        else:
            say(f"    orders     {copy.health['orders']}")
        if copy.has_redis:
            say(f"    carts      redis-cli -h {copy.address}")
        else:
            say(f"    carts      {copy.health['carts']}")
        say(f"    its shell  {program} shell {copy.name}\n")


def say(text: str) -> None:
    """To the person."""
    print(text, flush=True)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="One web shop, checked out twice, side by side.")
    parser.add_argument("--check", action="store_true", help="verify with real clients, then exit")
    check = parser.parse_args().check
    # A `kill` of the demo ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="loopbox-demo-"))
    if os.getuid() == 0:
        # PostgreSQL refuses to be root; the plain user it becomes must be able to reach its files.
        folder.chmod(0o755)
    try:
        return _show(folder, check=check)
    except KeyboardInterrupt:
        say("\nEnded; nothing is left.")
        return 0
    except DemoError as err:
        print(f"demo: {err}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _show(folder: Path, *, check: bool) -> int:
    loopbox = Loopbox()
    say(f"One web shop, checked out twice in {folder}:")
    say("    $ git clone origin shop")
    say(f"    $ git -C shop worktree add ../shop-fix-ui {BRANCH}")
    checkouts = make_checkouts(folder)
    say("Its committed configuration says port 3000, PostgreSQL at localhost:5432, Redis at")
    say("localhost:6379, in both. The same command in both:")
    with running_copies(loopbox, checkouts) as copies:
        describe(loopbox, copies)
        if check:
            right = verify(loopbox, copies, folder)
            say("all of it is right" if right else "something is wrong")
            return 0 if right else 1
        say("Order something in one of them: the other does not see it. Ctrl-C ends both.")
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
