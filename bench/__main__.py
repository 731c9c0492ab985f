"""`python -m bench [GROUP...]`: measure, store, write the page.

Root gets a network namespace of its own, so that no port of the machine is touched. A plain user
measures on the host's own loopback, at ports from 18000 up.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from bench import labpeers, machine, peers, render
from bench.harness import MeasurementError, load, say, store

GROUPS = ("inside", "frontdoor", "startup", "scale", "labs", "predict", "truth", "audit")
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
OWN_NETWORK = "LOOPBOX_BENCH_OWN_NETWORK"

# A namespace with a loopback and one more interface with a default route, which pasta asks for.
NETWORK = """
ip link set lo up
ip link add outside type veth peer name beyond
ip address add 192.0.2.1/24 dev outside
ip link set outside up
ip link set beyond up
ip route add default via 192.0.2.254
exec "$@"
"""


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=" ".join(GROUPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--quick", action="store_true", help="one short round, to try it out")
    parser.add_argument("--render", action="store_true", help="only write the page again")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args()
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"unknown group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    # A `kill` ends the measurements as Ctrl-C does, with all they started.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if not options.render:
        if OWN_NETWORK not in os.environ:
            peers.install_portless()
            if "labs" in (options.groups or GROUPS):
                labpeers.install_munet()
        if os.getuid() == 0 and OWN_NETWORK not in os.environ:
            return _again_in_own_network()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
        for name in options.groups or GROUPS:
            say(f"{name}: {rounds} rounds")
            try:
                module = importlib.import_module(f"bench.{name}")
                group = module.measure(rounds=rounds, seconds=seconds)
            except MeasurementError as err:
                say(f"  cannot measure `{name}` here: {err}")
                continue
            group.machine |= machine.read_facts() | peers.portless_version()
            store(group, options.results)
    paths = [options.results / f"{name}.json" for name in GROUPS]
    page = render.render_page([load(path) for path in paths if path.exists()])
    options.page.write_text(page, encoding="utf-8")
    say(f"written: {options.page}")
    return 0


def _again_in_own_network() -> int:
    command = ["unshare", "-n", "sh", "-ec", NETWORK, "sh", sys.executable, "-m", "bench"]
    env = dict(os.environ) | {OWN_NETWORK: "1"}
    with subprocess.Popen([*command, *sys.argv[1:]], env=env) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            return process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
