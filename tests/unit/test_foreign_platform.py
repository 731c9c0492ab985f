"""The command line on another system: simulated, with what Linux alone has taken away.

A subprocess says it is macOS or Windows, and finds neither the modules nor the names of `os`,
`socket` and `signal` that are missing there. What the standard library and click need was imported
before, for they adapt to the real system when they are.
"""

import json
import subprocess
import sys

import pytest

PRETEND = """
import asyncio, click, click.shell_completion, concurrent.futures, difflib, importlib, json, os
import shutil, signal, socket, subprocess, sys, tempfile

platform, gone = sys.argv[1], json.loads(sys.argv[2])

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in gone["modules"]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in gone["modules"]:
    sys.modules.pop(name, None)
for module in (os, socket, signal):
    for name in gone[module.__name__]:
        if hasattr(module, name):
            delattr(module, name)
os.environ["PATH"] = "/nonexistent"
os.environ["LOOPBOX_DEBUG"] = "1"
sys.platform = platform

from loopbox.cli.app import COMMANDS, main

if sys.argv[3:] != ["import everything"]:
    sys.exit(main(sys.argv[3:]))
failed = {}
for module in sorted({entry[0] for entry in COMMANDS.values()}):
    try:
        importlib.import_module(module)
    except (ImportError, AttributeError) as error:
        failed[module] = str(error)
print(json.dumps(failed))
"""

NOT_YET = {"loopbox.cli.lab_runner_commands"}
"""Command modules that import what Linux alone has; this list may only shrink."""

NOT_ON_A_MAC = {
    "modules": ["spwd", "loopbox.kernel._syscalls", "loopbox.kernel.syscalls", "ossaudiodev"],
    "os": ["setns", "unshare", "memfd_create", "pidfd_open", "eventfd", "splice", "O_PATH"],
    "socket": ["AF_NETLINK", "NETLINK_ROUTE", "AF_PACKET", "SO_BINDTODEVICE", "SO_PEERCRED",
               "SOCK_CLOEXEC", "SOCK_NONBLOCK"],
    "signal": ["pidfd_send_signal", "SIGRTMIN", "SIGRTMAX"],
}  # fmt: skip
NOT_ON_WINDOWS = {
    "modules": [*NOT_ON_A_MAC["modules"], "fcntl", "resource", "pwd", "grp", "termios", "tty",
                "pty", "syslog", "curses", "readline"],
    "os": [*NOT_ON_A_MAC["os"], "fork", "geteuid", "getuid", "getegid", "getgid", "O_CLOEXEC",
           "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "killpg", "setsid", "pipe2", "uname",
           "sched_getaffinity", "chown", "mkfifo"],
    "socket": [*NOT_ON_A_MAC["socket"], "AF_UNIX", "recv_fds", "send_fds"],
    "signal": [*NOT_ON_A_MAC["signal"], "SIGKILL", "SIGCHLD", "SIGHUP", "SIGQUIT", "alarm",
               "setitimer", "pthread_sigmask"],
}  # fmt: skip
SYSTEMS = {
    "darwin": NOT_ON_A_MAC,
    "freebsd14": NOT_ON_A_MAC,
    "win32": NOT_ON_WINDOWS,
}


def pretend(platform, *arguments):
    """The command's JSON, and its exit status."""
    argv = [sys.executable, "-c", PRETEND, platform, json.dumps(SYSTEMS[platform]), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout), done.returncode


@pytest.mark.parametrize("platform", SYSTEMS)
def test_every_command_can_be_imported(platform):
    """Help and completion import all of them, wherever they run."""
    failed, status = pretend(platform, "import everything")

    assert ({}, 0) == ({k: v for k, v in failed.items() if k not in NOT_YET}, status)


@pytest.mark.parametrize("platform", SYSTEMS)
def test_the_guard_is_refused_in_words(platform):
    """There is no nftables there, and nothing is promised."""
    found, status = pretend(platform, "guard", "status", "--json")

    assert (1, "linux-only") == (status, found["error"]["code"])


@pytest.mark.parametrize("platform", SYSTEMS)
def test_classify_works(platform):
    """It is pure, so it works everywhere."""
    found, status = pretend(platform, "classify", "127.0.0.1", "::ffff:127.0.0.1", "--json")

    assert (0, [True, True]) == (status, [entry["loopback"] for entry in found["addresses"]])


@pytest.mark.parametrize("platform", SYSTEMS)
def test_addr_plan_works(platform):
    """Plans need no privilege and no kernel of any kind."""
    found, status = pretend(platform, "addr", "plan", "127.0.0.2", "--os", "macos", "--json")

    command = "sudo ifconfig lo0 alias 127.0.0.2 netmask 255.255.255.255"
    assert (0, [command]) == (status, found["add"])


@pytest.mark.parametrize("platform", SYSTEMS)
def test_audit_says_what_it_could_not_see(platform):
    """Without a single tool on the path it lists nothing, and does not fail."""
    assert ({"findings": []}, 0) == pretend(platform, "audit", "--json")


@pytest.mark.parametrize("platform", SYSTEMS)
def test_doctor_climbs_all_rungs(platform):
    """Without a single tool the first rung fails in words; boxes are Linux only."""
    found, status = pretend(platform, "doctor", "--remote", "127.0.0.1:1", "--json")
    states = {rung["id"]: (rung["state"], rung["cause"]) for rung in found["rungs"]}

    assert (1, 10) == (status, len(states))
    assert ("fail", "no interface has the LOOPBACK flag") == states["loopback-interface"]
    assert ("skip", "Linux only") == states["boxes"]
