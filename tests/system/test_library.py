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


@pytest.mark.parametrize("workers", [(), ("-n", "4")], ids=["one", "four workers"])
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


def pytest_in(folder: Path, at_home: Sandbox, *before: str) -> subprocess.CompletedProcess[str]:
    """The suite in `folder`, run by pytest without our own configuration."""
    return subprocess.run(
        [
            *before,
            *(sys.executable, "-m", "pytest", "-q", "-s", "-rs", "-p", "no:cacheprovider"),
            *(str(folder), "-c", os.devnull, f"--rootdir={folder}"),
        ],
        env={**os.environ, **at_home.env},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_unused_the_plugin_imports_nothing(at_home: Sandbox, tmp_path: Path) -> None:
    """A run without --loopbox and without the fixtures loads the plugin's own file alone."""
    (tmp_path / "test_suite.py").write_text(
        "import sys\n\ndef test_nothing():\n"
        "    print(sorted(name for name in sys.modules if name.startswith('loopbox')))\n"
    )
    done = pytest_in(tmp_path, at_home)

    assert "['loopbox', 'loopbox.pytest_plugin']" in done.stdout.splitlines()[0]


@pytest.mark.root
def test_where_no_box_can_be_made_the_reason_is_told(at_home: Sandbox, tmp_path: Path) -> None:
    """Tests that ask for a box or a lab are skipped with cause and remedy."""
    (tmp_path / "lab.toml").write_text('[box.a]\nloopback = "auto"\n')
    (tmp_path / "test_suite.py").write_text(
        "def test_box(loopbox_box): pass\ndef test_lab(loopbox_lab): loopbox_lab('lab.toml')\n"
    )
    done = pytest_in(tmp_path, at_home, "setpriv", "--bounding-set", "-sys_admin", "--")

    assert "2 skipped" in done.stdout
    assert (
        done.stdout.count(
            "loopbox: cannot make a box: this root lacks CAP_SYS_ADMIN (capabilities(7)) "
            "(in a container, start it with --cap-add SYS_ADMIN"
        )
        == 2
    )
