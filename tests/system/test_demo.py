"""`make demo`: two checkouts of the shop at once, on the same ports, with real clients."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import Sandbox, own_files, traces, until

pytestmark = pytest.mark.system

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"
INVITATION = "Ctrl-C ends both."


def has_everything() -> bool:
    """Whether PostgreSQL, Redis, their clients and their drivers are installed here."""
    server = shutil.which("initdb") or glob.glob("/usr/lib/postgresql/*/bin/initdb")
    programs = all(shutil.which(name) for name in ("psql", "redis-server", "redis-cli", "curl"))
    drivers = all(importlib.util.find_spec(name) for name in ("psycopg", "redis"))
    return bool(server) and programs and drivers


def test_both_copies_serve_their_own_data(sandbox: Sandbox) -> None:
    """Each copy has its own pages, orders, PostgreSQL and Redis on the usual ports."""
    done = subprocess.run(
        [sys.executable, DEMO, "--check"],
        env=sandbox.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    seen = done.stdout.count("\n  ok ")

    assert (done.returncode, done.stdout.count("FAIL"), done.stderr) == (0, 0, "")
    if has_everything() or "CI" in os.environ:
        assert seen == 14
    else:
        assert seen >= 8


@pytest.mark.parametrize(
    ("address", "status", "said"),
    [
        ("127.0.0.1", 0, "shop is not served by name: 127.0.0.1:3000 is in use on the host"),
        ("0.0.0.0", 1, "demo: the host does not reach shop: 127."),
    ],
    ids=["its address is free", "nothing is free"],
)
def test_somebody_else_holds_the_port(
    sandbox: Sandbox, address: str, status: int, said: str
) -> None:
    """Without the name the address serves, and is checked; without either it says who is there."""
    with socket.create_server((address, 3000)):
        done = subprocess.run(
            [sys.executable, DEMO, "--check"],
            env=sandbox.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert (status, True) == (done.returncode, said in done.stdout + done.stderr), done
    assert "FAIL" not in done.stdout


def test_ctrl_c_leaves_nothing(sandbox: Sandbox) -> None:
    """After Ctrl-C no process, namespace, mount, listener or folder of the demo is left."""
    before = traces(), own_files("/tmp/loopbox-demo-*")
    process = subprocess.Popen(
        [sys.executable, DEMO], env=sandbox.env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as output:
        said = ""
        while INVITATION not in said:
            line = output.readline()
            assert line, f"the demo ended early:\n{said}"
            said += line
        process.send_signal(signal.SIGINT)
        rest = output.read()

    assert (process.wait(30), rest) == (0, "\nEnded; nothing is left.\n")
    until(
        lambda: (traces(), own_files("/tmp/loopbox-demo-*")) == before,
        what="the host as it was before",
    )
