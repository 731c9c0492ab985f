"""The library and the pytest plugin, as a project's own tests use them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import loopbox
from harness import Sandbox

pytestmark = pytest.mark.system


@pytest.fixture
def at_home(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """This process talks to the sandbox's keeper."""
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, sandbox.env[variable])
    monkeypatch.chdir(sandbox.project)
    return sandbox


def test_box_runs_connects_and_goes(at_home: Sandbox) -> None:
    """A program is started, waited for and spoken to; with the context all of it is gone."""
    with loopbox.box("shop") as box:
        server = box.run(["/usr/bin/python3", "-m", "http.server", "8000"], stderr=subprocess.PIPE)
        box.wait_listening(8000)
        with box.connect(8000) as sock:
            sock.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.0 200"
        with socket.create_connection((box.address, 8000), 5) as sock:
            sock.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.0 200"
        assert "127.0.0.1/8" in box.addresses

    with server:
        server.communicate()
    assert at_home.box_names() == []


def test_sockets_live_in_the_box(at_home: Sandbox) -> None:
    """A listener made through the library is on the box's loopback, not on the host's."""
    with (
        loopbox.box("a") as one,
        loopbox.box("b") as other,
        one.listen(5432) as listener,
        one.connect(5432) as client,
    ):
        accepted, peer = listener.accept()
        with accepted:
            assert client.getsockname() == peer
        with pytest.raises(ConnectionRefusedError):
            other.connect(5432)


SUITE = """
import socket
import pytest

@pytest.mark.parametrize("number", range(12))
def test_port_is_mine(number):
    with socket.create_server(("127.0.0.1", 5432)) as server:
        with socket.create_connection(("127.0.0.1", 5432)):
            server.accept()[0].close()

def test_fixture(loopbox_box):
    with loopbox_box.listen(5432), loopbox_box.connect(5432):
        pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "3")], ids=["one", "three workers"])
def test_a_suite_that_binds_one_port_passes(
    at_home: Sandbox, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    """With --loopbox a suite whose tests all bind 5432 passes, though the host's 5432 is taken."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    with socket.create_server(("127.0.0.1", 5432)):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--loopbox"),
                *workers,
                *(str(tmp_path / "test_suite.py"), "-c", os.devnull, f"--rootdir={tmp_path}"),
            ],
            env={**os.environ, **at_home.env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert (done.returncode, "13 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    assert at_home.box_names() == []
