"""The main job: a real stack checked out twice, both copies up at once on the same ports.

PostgreSQL on 5432, Redis on 6379, a Node app on 3000 that uses both at `localhost`, nginx on 80
and 8080 in front of it; a git repository and a linked worktree of it, with nothing configured.
The clients are the real ones: psql, redis-cli, curl, on the host and inside.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from frontworld import curl, need

from harness import Sandbox, own_processes, traces, until

pytestmark = pytest.mark.system

ROOT = os.geteuid() == 0
PORTS = (5432, 6379, 3000, 80, 8080)
DATA = {"shop": "tea", "fix-ui.shop": "coffee"}
"""What each copy, by its inferred name, has in stock."""

APP = """
const { execFileSync } = require("child_process");
const net = require("net");
function redis(line) {
  return new Promise((resolve, reject) => {
    const socket = net.connect(6379, "localhost", () => socket.write(line + "\\r\\n"));
    socket.once("data", data => { socket.destroy(); resolve(data.toString().split("\\r\\n")[1]); });
    socket.once("error", reject);
  });
}
require("http").createServer(async (request, response) => {
  try {
    const words = ["-h", "localhost", "-U", "shop", "-d", "postgres", "-Atc"];
    const orders = execFileSync("psql", [...words, "select string_agg(item, ',') from orders"]);
    response.end(JSON.stringify({
      host: request.headers.host, orders: orders.toString().trim(), cart: await redis("GET cart"),
    }));
  } catch (error) { response.statusCode = 500; response.end(String(error)); }
}).listen(3000, "localhost");
"""

NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr warn;
events {}
http {
  access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3;
  uwsgi_temp_path t4; scgi_temp_path t5;
  server {
    listen 80; listen [::]:80; listen 8080;
    location / { proxy_pass http://localhost:3000; proxy_set_header Host $host; }
  }
}
"""

START = """#!/bin/sh
cd "$(dirname "$0")"
{as_owner} {postgres} -D "$PWD/data" -c unix_socket_directories= -c listen_addresses=localhost \\
  -c shared_buffers=16MB -c fsync=off &
redis-server --save '' --appendonly no --dir "$PWD" --loglevel warning &
node app.js &
exec {nginx} -p "$PWD" -c "$PWD/nginx.conf" -e stderr
"""


class Stack:
    """Both copies of the project, in a folder that PostgreSQL's own user may pass through."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox = sandbox
        self.folders = {"shop": folder / "shop", "fix-ui.shop": folder / "shop-fix-ui"}
        self.address: dict[str, str] = {}
        self._as_owner: list[str] = []
        self._folder = folder

    def make(self) -> None:
        """A repository with everything but data, a worktree of it, a database in each."""
        bin_folder = Path(_postgres_folder())
        first = self.folders["shop"]
        first.mkdir()
        if ROOT:
            owner = pwd.getpwnam("nobody")
            self._as_owner = [need("setpriv"), "--reuid", "nobody", "--regid", str(owner.pw_gid)]
            self._as_owner.append("--clear-groups")
        values = {
            "{as_owner}": " ".join(self._as_owner),
            "{postgres}": str(bin_folder / "postgres"),
            "{nginx}": need("nginx"),
        }
        start = START
        for key, value in values.items():
            start = start.replace(key, value)
        texts = {"app.js": APP, "nginx.conf": NGINX, "start": start, ".gitignore": "data\nt?\n"}
        for name, text in texts.items():
            (first / name).write_text(text)
        (first / "start").chmod(0o755)
        self._git("init", "-q", "-b", "main")
        self._git("add", "-A")
        self._git("commit", "-q", "-m", "A shop")
        self._git("worktree", "add", "-q", "-b", "fix-ui", str(self.folders["fix-ui.shop"]))
        self._make_data(bin_folder / "initdb")

    def _git(self, *words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
        subprocess.run(
            [need("git"), *who, *words], cwd=self.folders["shop"], env=self.sandbox.env, check=True
        )

    def _make_data(self, initdb: Path) -> None:
        """One cluster is initialised, the other copied from it: both begin alike."""
        first = self.folders["shop"] / "data"
        for folder in self.folders.values():
            (folder / "data").mkdir(mode=0o700)
            if ROOT:
                shutil.chown(folder / "data", "nobody", pwd.getpwnam("nobody").pw_gid)
        subprocess.run(
            [
                *(*self._as_owner, str(initdb), "-D", str(first), "-U", "shop"),
                *("-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync"),
            ],
            env=self.sandbox.env,
            cwd=first.parent,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        second = self.folders["fix-ui.shop"] / "data"
        subprocess.run(["cp", "-a", f"{first}/.", str(second)], check=True)

    def start(self) -> None:
        """`loopbox run -- ./start` in both, then wait for every port."""
        for folder in self.folders.values():
            self.sandbox.start("run", "--", "./start", cwd=folder)
        for name, folder in self.folders.items():
            self._wait(name, folder)

    def _wait(self, name: str, folder: Path) -> None:
        until(lambda: name in self.sandbox.box_names(), what=f"box {name}")
        for port in PORTS:
            self.sandbox.ok("wait", name, str(port), "--timeout", "60")
        self.address[name] = self.sandbox.ok("address", cwd=folder).strip()
        until(lambda: self.is_ready(name), deadline=30, what="PostgreSQL taking queries")

    def is_ready(self, name: str) -> bool:
        """Whether the database takes queries: it listens before."""
        done = subprocess.run(
            ["pg_isready", "-q", "-h", self.address[name]], env=self.sandbox.env, check=False
        )
        return done.returncode == 0

    def psql(self, name: str, query: str) -> str:
        """What psql on the host prints, at the box's address."""
        words = ["-h", self.address[name], "-U", "shop", "-d", "postgres", "-Atc", query]
        return _run(self.sandbox, need("psql"), *words)

    def redis(self, name: str, *words: str) -> str:
        """What redis-cli on the host prints, at the box's address."""
        return _run(self.sandbox, need("redis-cli"), "-h", self.address[name], *words)

    def inside(self, name: str, *words: str) -> str:
        """What a command in the box prints."""
        return self.sandbox.ok("exec", name, "--", *words)


def _run(sandbox: Sandbox, *words: str) -> str:
    done = subprocess.run(words, env=sandbox.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout.strip()


def _postgres_folder() -> str:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))
    return os.path.dirname(found[-1] if found else need("postgres"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Both copies up, with different data in them; afterwards the host is as it was."""
    for program in ("psql", "redis-server", "redis-cli", "node", "nginx", "curl", "git"):
        need(program)
    before = host()
    folder = Path(tempfile.mkdtemp(prefix="loopbox-stack-"))
    folder.chmod(0o711)
    sandbox = Sandbox(tmp_path_factory.mktemp("stack"))
    try:
        made = Stack(sandbox, folder)
        made.make()
        made.start()
        for name, item in DATA.items():
            made.psql(name, "create table orders (item text)")
            made.psql(name, f"insert into orders values ('{item}')")
            assert made.redis(name, "set", "cart", f"cart of {item}") == "OK"
        yield made
    finally:
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            undo.callback(sandbox.close)
    until(lambda: host() == before, what="the host as it was before")


def host() -> dict[str, object]:
    """What boxes could leave behind here; how many namespaces others have is their affair."""
    found = traces()
    del found["namespaces with processes"]
    return {**found, "processes": _count("redis-server") + _count("nginx") + _count("postgres")}


def _count(program: str) -> int:
    """Processes of that name that the test began, here or in a box of its own."""
    lines = []
    for pid in own_processes():
        try:
            lines.append(Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
        except OSError:
            continue
    return len([line for line in lines if re.search(f"{program}.*loopbox-stack-", line)])


def answer(text: str) -> dict[str, Any]:
    """The app's answer without the host it was asked by."""
    found = json.loads(text)
    assert isinstance(found, dict)
    found.pop("host")
    return found


def expected(name: str) -> dict[str, str]:
    """What the app of this copy must say."""
    return {"orders": DATA[name], "cart": f"cart of {DATA[name]}"}


EACH = pytest.mark.parametrize("name", DATA)


@EACH
def test_every_port_is_its_own(stack: Stack, name: str) -> None:
    """`show` lists the same ports for both copies, each at its own address."""
    listeners = stack.sandbox.json("show", name)["listeners"]
    found = {one["port"]: one["at"] for one in listeners if one["protocol"] == "tcp"}
    may = {port: ROOT or port >= 1024 for port in PORTS}

    assert {port: f"{stack.address[name]}:{port}" if may[port] else None for port in PORTS} == found
    assert len(set(stack.address.values())) == 2


@EACH
def test_psql_and_redis_cli_from_the_host(stack: Stack, name: str) -> None:
    """Real clients at the box's address see this copy's data and no other's."""
    assert DATA[name] == stack.psql(name, "select item from orders")
    assert f"cart of {DATA[name]}" == stack.redis(name, "get", "cart")


@EACH
def test_psql_and_redis_cli_inside(stack: Stack, name: str) -> None:
    """The same clients at `localhost` in the box see the same."""
    query = ("-h", "localhost", "-U", "shop", "-d", "postgres", "-Atc", "select item from orders")

    assert DATA[name] == stack.inside(name, "psql", *query).strip()
    assert f"cart of {DATA[name]}" == stack.inside(name, "redis-cli", "get", "cart").strip()


@EACH
def test_curl_by_name_and_by_address(stack: Stack, name: str) -> None:
    """The app, and nginx before it, are this copy's however they are asked."""
    address = stack.address[name]
    urls = [
        f"http://{name}.localhost:3000/",
        f"http://{address}:3000/",
        f"http://{name}.localhost:8080/",
        f"http://{address}:8080/",
    ]
    if ROOT:
        urls += [f"http://{name}.localhost/", f"http://{address}/"]
    said = [curl(url) for url in urls]
    said += [stack.sandbox.ok("curl", name, "-sS", f"http://{host}/") for host in
             ("localhost", "127.0.0.1", "[::1]", "localhost:3000")]  # fmt: skip

    assert [expected(name)] * len(said) == [answer(text) for text in said]


def test_what_one_writes_the_other_never_sees(stack: Stack) -> None:
    """Writes through every client end in one copy only."""
    stack.psql("shop", "create table only_here (x int)")
    stack.inside("shop", "redis-cli", "set", "only", "here")
    tables = "select count(*) from pg_tables where tablename = 'only_here'"

    assert ("1", "0") == tuple(stack.psql(name, tables) for name in DATA)
    assert ("here", "") == tuple(stack.redis(name, "get", "only") for name in DATA)


def test_a_dump_is_the_same_outside_and_inside(stack: Stack) -> None:
    """30 MB out of PostgreSQL through the front door hash as they do without it."""
    query = "copy (select i, repeat(md5(i::text), 10) from generate_series(1, 90000) i) to stdout"
    words = ["psql", "-U", "shop", "-d", "postgres", "-c", query, "-h"]
    outside = _run(stack.sandbox, *words, stack.address["shop"])
    inside = stack.inside("shop", *words, "localhost").strip()

    assert len(outside) > 29_000_000
    assert _hash(inside) == _hash(outside)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_two_hundred_clients_of_redis(stack: Stack) -> None:
    """redis-benchmark's own clients, 200 at once through the front door, have every answer."""
    done = subprocess.run(
        [
            *(need("redis-benchmark"), "-h", stack.address["fix-ui.shop"]),
            *("-c", "200", "-n", "10000", "-t", "incr", "-q"),
        ],
        env=stack.sandbox.env,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "requests per second" in done.stdout
    assert stack.redis("fix-ui.shop", "get", "counter:__rand_int__") == "10000"
    assert stack.redis("shop", "get", "counter:__rand_int__") == ""


def test_one_copy_goes_and_the_other_stays(stack: Stack) -> None:
    """After `down` the first answers 503 by name, its address is silent, the other works on."""
    stack.sandbox.ok("down", cwd=stack.folders["shop"])

    assert curl("-o", "/dev/null", "-w", "%{http_code}", "http://shop.localhost:3000/") == "503"
    refused = subprocess.run(
        ["pg_isready", "-q", "-h", stack.address["shop"]], env=stack.sandbox.env, check=False
    )
    assert refused.returncode != 0
    assert expected("fix-ui.shop") == answer(curl("http://fix-ui.shop.localhost:3000/"))
    assert stack.psql("fix-ui.shop", "select item from orders") == "coffee"
