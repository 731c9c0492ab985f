"""The command line on another system: simulated, with what Linux alone has taken away.

A subprocess says it is macOS or Windows, and finds neither the modules nor the names of `os`,
`socket` and `signal` that are missing there. What the standard library and click need was imported
before, for they adapt to the real system when they are. The tools of that system are programs on
its path that print what was recorded of them.
"""

import json
import os
import re
import subprocess
import sys

import pytest
from recordings import freebsd as freebsd_says
from recordings import macos as macos_says
from recordings import windows as windows_says

from loopbox import __version__

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
os.environ["LOOPBOX_DEBUG"] = "1"
sys.platform = platform
os.name = "nt" if platform == "win32" else "posix"

from loopbox.__main__ import main
from loopbox.cli.app import cli

if sys.argv[3:] != ["import everything"]:
    sys.argv[1:] = sys.argv[3:]
    sys.exit(main())
for name in cli.list_commands(None):
    cli.get_command(None, name)
print(json.dumps(cli.list_commands(None)))
"""

PORTABLE = ["classify", "addr", "audit", "doctor", "completion", "help"]

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


TOOLS = {
    # name of a program: (words among its arguments, what it prints), the first that fits
    "darwin": {
        "ifconfig": [("-a", macos_says.IFCONFIG)],
        "netstat": [("-rn", macos_says.ROUTES), ("-anW", macos_says.NETSTAT)],
        "lsof": [("-iTCP", macos_says.LSOF)],
    },
    "freebsd14": {
        "ifconfig": [("-a", freebsd_says.IFCONFIG)],
        "netstat": [("-rn", freebsd_says.ROUTES), ("-anW", freebsd_says.NETSTAT)],
        "sockstat": [("-n", freebsd_says.SOCKSTAT)],
    },
    "win32": {
        "powershell": [
            ("Get-NetIPAddress", windows_says.ADDRESSES),
            ("Get-NetTCPConnection", windows_says.TCP),
            ("Get-NetUDPEndpoint", windows_says.UDP),
            ("Get-NetRoute", windows_says.ROUTES),
            ("Get-NetAdapter", windows_says.ADAPTERS),
            ("Get-Process", windows_says.PROCESSES),
        ],
    },
}
REACHED = {
    "darwin": {("127.0.0.1", 5432): "loopback", ("0.0.0.0", 6379): "lan", ("::", 8080): "lan"},
    "freebsd14": {("127.0.0.1", 25): "loopback", ("0.0.0.0", 22): "lan"},
    "win32": {("127.0.0.2", 8080): "loopback", ("0.0.0.0", 135): "lan"},
}


def spoken(platform, *arguments, path="/nonexistent"):
    """The finished command."""
    argv = [sys.executable, "-c", PRETEND, platform, json.dumps(SYSTEMS[platform]), *arguments]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PATH": str(path)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def pretend(platform, *arguments, path="/nonexistent"):
    """The command's JSON, and its exit status."""
    done = spoken(platform, *arguments, path=path)
    return json.loads(done.stdout), done.returncode


@pytest.fixture(scope="module")
def toolboxes(tmp_path_factory):
    """By system, a folder of programs that print the recordings."""
    found = {}
    for platform, tools in TOOLS.items():
        folder = found[platform] = tmp_path_factory.mktemp(platform)
        for name, answers in tools.items():
            program = folder / name
            program.write_text(
                f"#!{sys.executable}\nimport sys\nasked = ' '.join(sys.argv[1:])\n"
                f"for words, said in {answers!r}:\n"
                "    if words in asked:\n"
                "        sys.exit(sys.stdout.write(said) and 0)\n"
                "sys.exit(1)\n"
            )
            program.chmod(0o755)
    return found


@pytest.mark.parametrize("platform", SYSTEMS)
def test_every_command_offered_can_be_imported(platform):
    """Help and completion import all of them, wherever they run."""
    assert (PORTABLE, 0) == pretend(platform, "import everything")


@pytest.mark.parametrize("platform", SYSTEMS)
def test_help_and_version(platform):
    """Both come, and offer what works there and no more."""
    version, help_ = spoken(platform, "--version"), spoken(platform, "--help")

    assert (0, f"loopbox {__version__}\n", "") == (
        version.returncode, version.stdout, version.stderr
    )  # fmt: skip
    assert (0, "") == (help_.returncode, help_.stderr)
    assert (
        PORTABLE == re.findall(r"^  ([a-z]+)  +\S", help_.stdout.partition("Usage")[2], re.M)[-6:]
    )


@pytest.mark.parametrize("platform", SYSTEMS)
@pytest.mark.parametrize("words", [["ls"], ["run", "--", "true"], ["up"], []], ids=str)
def test_boxes_are_refused_in_words(platform, words):
    """No traceback, and what works instead."""
    done = spoken(platform, *words)

    assert done.returncode == (125 if words[:1] == ["run"] else 1)
    assert "boxes and labs are on Linux only\nhint: what works here" in done.stderr


@pytest.mark.parametrize("platform", SYSTEMS)
def test_audit_of_the_recorded_system(platform, toolboxes):
    """Its listeners, judged by what its own tools printed."""
    found, status = pretend(platform, "audit", "--check", "--json", path=toolboxes[platform])
    reached = {
        (f["listener"]["bind"], f["listener"]["port"]): f["reach"] for f in found["findings"]
    }

    assert 1 == status
    assert REACHED[platform].items() <= reached.items()


@pytest.mark.parametrize("platform", SYSTEMS)
def test_aliases_of_the_recorded_system(platform, toolboxes):
    """The loopback interface is found by its flag."""
    found, status = pretend(platform, "addr", "ls", "--json", path=toolboxes[platform])

    assert 0 == status
    assert {"127.0.0.1", "::1"} <= {entry["address"] for entry in found["addresses"]}


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
