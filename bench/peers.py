"""The contenders for the way from the host into a box, each with the same servers behind it.

Owns: how each program is told to do this work, fairly: its own fast settings, no logging. Must
never: measure. A contender that cannot be started raises MeasurementError with the reason.

Example::

    with World() as world:
        contender = start_haproxy(world, start_direct(world))
        contender.web       # Target("127.0.0.1", 18200)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import MeasurementError
from bench.loads import Target
from bench.world import World, family

BULK_SERVER = Path(__file__).with_name("bulkserver.py")
PORTLESS = "portless@0.15"
CACHE = Path(__file__).resolve().parent / ".cache"
PORTLESS_PROGRAM = CACHE / "node_modules" / ".bin" / "portless"

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx-{port}.pid; error_log stderr crit; {user}
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=4096; return 200 "hello from the box\\n"; }}
}}
"""

HAPROXY = """
global
  maxconn 3000
defaults
  mode tcp
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option splice-auto
listen web
  bind 127.0.0.1:{web}
  server box 127.0.0.1:{web_behind}
listen bulk
  bind 127.0.0.1:{bulk}
  server box 127.0.0.1:{bulk_behind}
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to the servers."""

    name: str
    web: Target
    """An nginx that answers every request with 19 bytes."""
    bulk: Target
    relay_pids: Callable[[], Sequence[int]]
    """The processes that carry the bytes; none for the direct way."""
    server_pids: Callable[[], Sequence[int]]


def web_command(world: World, port: int) -> list[str | Path]:
    """The command line of an nginx on 127.0.0.1:`port`."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        raise MeasurementError("nginx is not installed")
    config = world.folder / f"nginx-{port}.conf"
    user = "user root;" if os.getuid() == 0 else ""
    config.write_text(NGINX.format(folder=world.folder, port=port, user=user), encoding="utf-8")
    return [nginx, "-e", "stderr", "-c", config]


def bulk_command(port: int) -> list[str | Path]:
    """The command line of a bulk server on 127.0.0.1:`port`."""
    return [sys.executable, "-I", "-S", BULK_SERVER, str(port)]


def start_direct(world: World) -> Contender:
    """No relay at all: client and server on one loopback."""
    servers = [world.start(web_command(world, 18000)), world.start(bulk_command(18001))]
    for port in (18000, 18001):
        world.wait_for("127.0.0.1", port)
    pids = [server.pid for server in servers]
    return Contender(
        "direct",
        Target("127.0.0.1", 18000),
        Target("127.0.0.1", 18001),
        relay_pids=list,
        server_pids=lambda: family(pids),
    )


def start_loopbox(world: World, *, pure: bool = False) -> tuple[Contender, Contender]:
    """The front door, by the box's address and by name on the shared door."""
    name, web, bulk = ("pure", 18110, 18111) if pure else ("bench", 18100, 18101)
    loopbox = world.loopbox(name, env={"LOOPBOX_RELAY": "python"} if pure else None)
    runs = [
        loopbox.run(name, web_command(world, web)),
        loopbox.run(name, bulk_command(bulk)),
    ]
    address = loopbox.address(name)
    for port in (web, bulk):
        world.wait_for(address, port)
    keeper = loopbox.keeper_pid()
    pids = [run.pid for run in runs]
    label = "loopbox, pure Python" if pure else "loopbox"

    def servers() -> list[int]:
        return [pid for pid in family(pids) if pid != keeper]

    return (
        Contender(
            label,
            Target(address, web),
            Target(address, bulk),
            relay_pids=lambda: [keeper],
            server_pids=servers,
        ),
        Contender(
            f"{label}, by name",
            Target("127.0.0.1", web, f"{name}.localhost"),
            Target("127.0.0.1", bulk, f"{name}.localhost"),
            relay_pids=lambda: [keeper],
            server_pids=servers,
        ),
    )


def start_haproxy(world: World, direct: Contender) -> Contender:
    """HAProxy in TCP mode with splicing, its default number of threads."""
    config = world.folder / "haproxy.cfg"
    config.write_text(
        HAPROXY.format(
            web=18200, bulk=18201, web_behind=direct.web.port, bulk_behind=direct.bulk.port
        ),
        encoding="utf-8",
    )
    haproxy = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return _relay(world, direct, "HAProxy", [[haproxy or "haproxy", "-db", "-f", config]], 18200)


def start_socat(world: World, direct: Contender) -> Contender:
    """Two socats with large buffers; each forks per connection, as one does."""
    commands: list[list[str | Path]] = [
        [
            "socat",
            "-b262144",
            f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=4096,nodelay",
            f"TCP:127.0.0.1:{behind},nodelay",
        ]
        for port, behind in ((18300, direct.web.port), (18301, direct.bulk.port))
    ]
    return _relay(world, direct, "socat", commands, 18300)


def start_pasta(world: World) -> Contender:
    """The servers in pasta's own namespace, their ports forwarded by it (spliced on loopback)."""
    web, bulk = 18400, 18401
    as_root = ["--runas", "0"] if os.getuid() == 0 else []
    script = '"$1" -e stderr -c "$2" & exec "$3" -I -S "$4" "$5"'
    nginx, _, _, _, config = web_command(world, web)
    process = world.start(
        [
            *("pasta", "-4", "-q", "-f", *as_root),
            *("-t", f"{web},{bulk}", "-u", "none", "-T", "none", "-U", "none"),
            *("--", "sh", "-c", script, "sh"),
            *(nginx, config, sys.executable, BULK_SERVER, str(bulk)),
        ]
    )
    _wait(world, process, (web, bulk))
    # Pasta is the process itself; the servers are its descendants.
    return Contender(
        "pasta",
        Target("127.0.0.1", web),
        Target("127.0.0.1", bulk),
        relay_pids=lambda: [process.pid],
        server_pids=lambda: [pid for pid in family([process.pid]) if pid != process.pid],
    )


def start_portless(world: World, direct: Contender) -> Contender:
    """portless (npm) in front of the direct servers; it speaks only HTTP and routes by `Host`."""
    program, env, pid = start_portless_proxy(world, port=18500)
    for name, port in (("web", direct.web.port), ("bulk", direct.bulk.port)):
        subprocess.run(
            [program, "alias", name, str(port)],
            env=env,
            capture_output=True,
            check=False,
            timeout=30,
        )
    contender = Contender(
        "portless",
        Target("127.0.0.1", 18500, "web.localhost"),
        Target("127.0.0.1", 18500, "bulk.localhost"),
        relay_pids=lambda: family([pid]),
        server_pids=direct.server_pids,
    )
    _wait_routed(contender.web)
    return contender


def start_portless_proxy(world: World, *, port: int) -> tuple[Path, dict[str, str], int]:
    """A portless proxy without TLS: its program, the environment to call it in, its process."""
    program = find_portless()
    folder = world.folder / f"portless-{port}"
    folder.mkdir()
    env = dict(os.environ) | {
        "HOME": str(folder),
        "PORTLESS_STATE_DIR": str(folder),
        "PORTLESS_PORT": str(port),
        "PORTLESS_HTTPS": "0",
        "PORTLESS_SYNC_HOSTS": "0",  # as root it would edit the machine's /etc/hosts
        "NODE_ENV": "production",
    }
    process = world.start(
        [program, "proxy", "start", "--foreground", "--no-tls", "-p", str(port)], env=env
    )
    _wait(world, process, (port,))
    return program, env, process.pid


def find_portless() -> Path:
    """portless where `install_portless` put it; raises MeasurementError."""
    if not PORTLESS_PROGRAM.exists():
        raise MeasurementError("it is not installed")
    return PORTLESS_PROGRAM


def portless_version() -> dict[str, str]:
    """Its version as a fact for the page; nothing when it is not installed."""
    description = CACHE / "node_modules" / "portless" / "package.json"
    if not description.exists():
        return {}
    return {"portless": json.loads(description.read_text(encoding="utf-8"))["version"]}


def install_portless() -> None:
    """Fetch portless by npm, once, into a folder of the benchmark; without npm do nothing."""
    if PORTLESS_PROGRAM.exists() or shutil.which("npm") is None:
        return
    CACHE.mkdir(exist_ok=True)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(CACHE)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([*command, PORTLESS], capture_output=True, check=False, timeout=180)


def _wait_routed(target: Target) -> None:
    """Wait until portless has read its routes."""
    deadline = time.monotonic() + 10
    command = ["curl", "-sf", "-o", "/dev/null", "-H", f"Host: {target.host}"]
    while True:
        url = f"http://{target.address}:{target.port}/"
        if subprocess.run([*command, url], check=False, timeout=10).returncode == 0:
            return
        if time.monotonic() > deadline:
            raise MeasurementError("portless does not serve its routes")
        time.sleep(0.1)


def _relay(
    world: World,
    direct: Contender,
    name: str,
    commands: Sequence[Sequence[str | Path]],
    port: int,
) -> Contender:
    if shutil.which(str(commands[0][0])) is None:
        raise MeasurementError(f"{commands[0][0]} is not installed")
    processes = [world.start(command) for command in commands]
    _wait(world, processes[-1], (port, port + 1))
    return Contender(
        name,
        Target("127.0.0.1", port),
        Target("127.0.0.1", port + 1),
        relay_pids=lambda: family(process.pid for process in processes),
        server_pids=direct.server_pids,
    )


def _wait(world: World, process: subprocess.Popen[bytes], ports: Sequence[int]) -> None:
    for port in ports:
        world.wait_for("127.0.0.1", port)
    if process.poll() is not None:
        raise MeasurementError(f"ended with status {process.returncode}")
