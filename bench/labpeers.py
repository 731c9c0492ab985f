"""The peers of labs: plain boxes on a bridge by each of them, told to come up and to go down.

Owns: the scripts and drivers, where munet is installed, what a peer needs to run here. Every peer
is one program that makes COUNT boxes, prints a line, waits for one, and takes all down again; the
time counts from its start to the line, and from the answer to its end.
Must never: measure anything else, leave a namespace behind (the scripts of `ip` work in a mount
namespace with a /run of its own).

Example::

    peer = find_peers(world)["ip -batch"]
    peer(200)                   # {"up": 210.0, "down": 25.0}, in ms
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.harness import MeasurementError
from bench.peers import CACHE
from bench.world import World, end

HERE = Path(__file__).resolve().parent
MUNET = "munet==0.17.*"
MUNET_FOLDER = CACHE / "munet"
SYSTEM_PYTHON = "/usr/bin/python3"
"""Where Debian's package of Mininet can be imported."""
PATIENCE_S = 400.0

Peer = Callable[[int], Mapping[str, float]]

OWN_RUN = 'mount -t tmpfs tmpfs /run && mkdir /run/netns && exec sh -e "$@"'


def find_peers(world: World) -> tuple[dict[str, Peer], dict[str, str]]:
    """Name to what runs that peer; and name to why it cannot run here."""
    found: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    for name, make in (
        ("ip -batch", ip_batch),
        ("ip netns", ip_one_by_one),
        ("Mininet", mininet),
        ("munet", munet),
    ):
        try:
            found[name] = make(world)
        except MeasurementError as err:
            absent[name] = str(err)
    return found, absent


def ip_batch(world: World) -> Peer:
    """The same namespaces and veth pairs, by one `ip -batch` up and one down; nothing inside."""
    ip = _program("ip", "iproute2")

    def run(count: int) -> Mapping[str, float]:
        up = ["link add br0 up type bridge"]
        for number in range(count):
            up.append(f"netns add n{number}")
            up.append(f"link add p{number} up master br0 type veth peer name eth0 netns n{number}")
        down = [f"netns del n{number}" for number in range(count)] + ["link del br0"]
        files = [world.folder / "up.batch", world.folder / "down.batch"]
        for file, lines in zip(files, (up, down), strict=True):
            file.write_text("\n".join(lines) + "\n", encoding="ascii")
        script = '"$1" -batch "$2"; echo up; read -r _; "$1" -batch "$3"'
        return drive(world, in_own_run("-c", script, "sh", ip, *map(str, files)))

    return run


def ip_one_by_one(world: World) -> Peer:
    """A shell script that calls `ip` for each thing, as one does by hand; addresses as well."""
    ip = _program("ip", "iproute2")
    each = """
    "$1" netns add n$i
    "$1" -n n$i link set lo up
    "$1" link add p$i up master br0 type veth peer name eth0 netns n$i
    "$1" -n n$i address add 10.9.0.$((i + 1))/24 dev eth0
    "$1" -n n$i link set eth0 up
    """
    script = f"""
    "$1" link add br0 up type bridge
    i=0; while [ $i -lt "$2" ]; do {each} i=$((i + 1)); done
    echo up; read -r _
    i=0; while [ $i -lt "$2" ]; do "$1" netns del n$i; i=$((i + 1)); done
    "$1" link del br0
    """
    return lambda count: drive(world, in_own_run("-c", script, "sh", ip, str(count)))


def mininet(world: World) -> Peer:
    """Hosts on one switch, which is the kernel's bridge. Needs root."""
    _demand_root()
    _program("mn", "mininet")
    _program("brctl", "bridge-utils")
    driver = HERE / "mininet_boxes.py"
    return lambda count: drive(world, ["unshare", "-n", SYSTEM_PYTHON, str(driver), str(count)])


def munet(world: World) -> Peer:
    """Nodes on one network. Needs root, a PID namespace of its own, and patience with pgrep."""
    _demand_root()
    python = MUNET_FOLDER / "bin" / "python"
    if not python.exists():
        raise MeasurementError("it is not installed")
    driver = HERE / "munet_boxes.py"
    namespaces = ("unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child")

    def run(count: int) -> Mapping[str, float]:
        folder = world.folder / "munet"
        folder.mkdir(exist_ok=True)
        try:
            command = [*namespaces, str(python), str(driver), str(count), str(folder)]
            return {"up": drive(world, command)["up"]}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run


def install_munet() -> None:
    """Fetch munet by pip, once, into a virtual environment of the benchmark."""
    if (MUNET_FOLDER / "bin" / "munet").exists() or os.getuid() != 0:
        return
    CACHE.mkdir(exist_ok=True)
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        subprocess.run([SYSTEM_PYTHON, "-m", "venv", MUNET_FOLDER], check=True, timeout=120)
        pip = [str(MUNET_FOLDER / "bin" / "pip"), "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, MUNET], check=True, capture_output=True, timeout=180)


def drive(
    world: World,
    command: Sequence[str],
    *,
    settle: Callable[[], None] = lambda: None,
    look: Callable[[], Mapping[str, float]] = dict,
) -> dict[str, float]:
    """Run a peer once; milliseconds up and down. Raises MeasurementError.

    `settle` waits for what is begun to be complete, which counts; `look` adds what it finds then,
    which does not.
    """
    log = world.folder / "peer.log"
    with log.open("wb") as words:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            cwd=world.folder,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
            if not ready or process.stdout.readline().strip() != b"up":
                raise MeasurementError(f"it did not come up: {_last_line(log)}")
            settle()
            up = time.perf_counter()
            seen = look()
            told = time.perf_counter()
            process.stdin.write(b"\n")
            process.stdin.close()
            process.wait(PATIENCE_S)
            gone = time.perf_counter()
            if process.returncode:
                raise MeasurementError(f"it did not go down: {_last_line(log)}")
        except (subprocess.TimeoutExpired, BrokenPipeError) as err:
            raise MeasurementError(f"it did not go down: {err}") from err
        finally:
            process.stdout.close()
            end(process)
    return {"up": (up - begun) * 1000, "down": (gone - told) * 1000, **seen}


def in_own_run(*arguments: str, own_pids: bool = False) -> list[str]:
    """`sh -e ARGUMENTS` in namespaces in which `ip netns` leaves no trace on this machine.

    `own_pids`: what it starts ends with it, daemons too.
    """
    flags = ["-nm" if os.getuid() == 0 else "-Urnm"]
    if own_pids:
        flags += ["--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["unshare", *flags, "sh", "-ec", OWN_RUN, "sh", *arguments]


def versions() -> dict[str, str]:
    """Of what was measured beside, for the page."""
    found = {}
    python = MUNET_FOLDER / "bin" / "python"
    question = "import importlib.metadata as m; print(m.version('munet'))"
    for name, command in (
        ("munet", [str(python), "-c", question]),
        ("mininet", ["dpkg-query", "-W", "-f", "${Version}", "mininet"]),
        ("frr", ["dpkg-query", "-W", "-f", "${Version}", "frr"]),
        ("iproute2", ["dpkg-query", "-W", "-f", "${Version}", "iproute2"]),
    ):
        with contextlib.suppress(OSError):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.strip():
                found[name] = done.stdout.strip()
    return found


def _program(name: str, package: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise MeasurementError(f"{name} is not installed (Debian: {package})")
    return path


def _demand_root() -> None:
    if os.getuid() != 0:
        raise MeasurementError("it asks for root")


def _last_line(log: Path) -> str:
    words = log.read_text(encoding="utf-8", errors="replace").strip()
    return words.rpartition("\n")[2][-200:] or "it said nothing"


if __name__ == "__main__":
    with World() as here:
        for peer_name, peer in find_peers(here)[0].items():
            print(peer_name, dict(peer(int(sys.argv[1]))))
