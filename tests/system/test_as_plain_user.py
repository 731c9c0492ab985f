"""The rootless part of the suite, run again as a plain user that this test makes.

A separate process with real credentials of a plain user, in a network namespace that belongs to
the machine (as on a real host, and not to the user), is the only honest test of "rootless".
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.root]

_USER = "loopbox-test"
_TREE = Path(__file__).resolve().parents[2]


def _plain_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_USER)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", _USER], check=True)
        return pwd.getpwnam(_USER)


def test_rootless_part_as_a_plain_user(request: pytest.FixtureRequest) -> None:
    """Every test that needs no root passes for a plain user too."""
    user = _plain_user()
    as_user = ["setpriv", "--reuid", _USER, "--regid", str(user.pw_gid), "--init-groups"]
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
    request.addfinalizer(lambda: shutil.rmtree(base, ignore_errors=True))
    os.chown(base, user.pw_uid, user.pw_gid)

    done = subprocess.run(
        [
            *as_user,
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"),
            f"--basetemp={base}/t",
            # tests/contract makes namespaces itself, and runs itself again in a user namespace.
            *("tests/system", "tests/cli"),
        ],
        cwd=_TREE,
        env={
            "PATH": os.environ["PATH"],
            "HOME": user.pw_dir,
            "USER": _USER,
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(base / "hypothesis"),
            **({"CI": os.environ["CI"]} if "CI" in os.environ else {}),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
