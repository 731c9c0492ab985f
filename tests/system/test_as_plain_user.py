"""The rootless part of the suite, run again as a plain user that this test makes.

A separate process with real credentials of a plain user, in a network namespace that belongs to
the machine (as on a real host, and not to the user), is the only honest test of "rootless". It
begins with the run as root (conftest.py) and goes on beside it, in network, process and mount
namespaces of its own, so that neither meets what the other starts; this test waits for its end.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.root]

_USER = "loopbox-test"
_TREE = Path(__file__).resolve().parents[2]
_APART = (
    *("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
    # The shell stays, as that namespace's first process: it reaps what nobody else does.
    *("sh", "-c", 'ip link set lo up && "$@"; exit $?', "sh"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """The other run while it goes on."""

    base: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        """Where it writes what it says."""
        return self.base / "log"

    def end(self) -> None:
        """End it, if it has not, with all it started (the kernel ends a process namespace)."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.base, ignore_errors=True)


def _plain_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_USER)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", _USER], check=True)
        return pwd.getpwnam(_USER)


def begin() -> Run:
    """Start the other run."""
    user = _plain_user()
    as_user = ("setpriv", "--reuid", _USER, "--regid", str(user.pw_gid), "--init-groups")
    readable = subprocess.run(
        [*as_user, sys.executable, "-c", "import loopbox.client, harness"],
        env={"PYTHONPATH": str(_TREE / "tests"), "PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert readable.returncode == 0, (
        f"user {_USER} cannot read {_TREE}; put the checkout where every user can: "
        f"{readable.stderr}"
    )
    # Not below pytest's own folder: another run of root's may clear that away meanwhile.
    base = Path(tempfile.mkdtemp(prefix="loopbox-plain-", dir="/tmp"))
    os.chown(base, user.pw_uid, user.pw_gid)
    command = [
        *_APART,
        *as_user,
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", f"--basetemp={base}/t"),
        # tests/contract makes namespaces itself, and runs itself again in a user namespace.
        *("tests/system", "tests/cli"),
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": user.pw_dir,
        "USER": _USER,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(base / "hypothesis"),
        **({"CI": os.environ["CI"]} if "CI" in os.environ else {}),
    }
    with open(base / "log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=_TREE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return Run(base, process)


def test_rootless_part_as_a_plain_user(request: pytest.FixtureRequest) -> None:
    """Every test that needs no root passes for a plain user too."""
    run: Run = getattr(request.config, "plain_run", None) or begin()
    request.addfinalizer(run.end)
    status = run.process.wait()
    said = run.log.read_text(errors="replace")
    sys.stdout.write(said)

    assert status == 0, said[-20000:]
