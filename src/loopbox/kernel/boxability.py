"""What this machine allows of boxes, by trying in a child process that is thrown away.

Owns: one fork that makes the namespaces a box needs and asks for nftables in them; the files that
tell WSL2 and forbidding settings.

Must never: leave anything behind, judge.

Example::

    BoxTrial().seen().problem      # None where boxes work
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from loopbox.errors import HostError
from loopbox.kernel.namespaces import raise_lo, user_namespace_error
from loopbox.kernel.syscalls import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER, unshare
from loopbox.rules.doctor.observed import BoxesSeen

_SECONDS = 5
_LIMITS = (
    ("user/max_net_namespaces", "network namespaces"),
    ("user/max_mnt_namespaces", "mount namespaces"),
)


class BoxTrial:
    """One try at what a box is made of, begun at once in a child; `seen` waits for its report.

    Begin it before the first thread is started: the child is a fork.
    """

    def __init__(self) -> None:
        self._is_root = os.geteuid() == 0
        reader, writer = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(reader)
            signal.alarm(_SECONDS)
            try:
                os.write(writer, _attempt(is_root=self._is_root).encode())
            finally:
                os._exit(0)
        os.close(writer)
        self._reader = reader

    def seen(self) -> BoxesSeen:
        """Whether this user can make boxes here, and what they would lack."""
        with os.fdopen(self._reader, "rb") as pipe:
            report = pipe.read().decode() or "failed network 4"
        os.waitpid(self._child, 0)
        is_wsl = "microsoft" in _text("/proc/sys/kernel/osrelease").lower()
        problem, fix = _explained(report, is_root=self._is_root)
        lacks = tuple(words for key, words in _LACKS.items() if report == key)
        if problem is None and lacks:
            fix = "sudo modprobe nf_tables nft_tproxy nft_fib_inet"
        return BoxesSeen(problem, fix, lacks, is_wsl=is_wsl, is_root=self._is_root)


_LACKS = {
    "no-nftables": "no nftables in this kernel: boxes would have no guard and no way out",
    "no-tproxy": "no transparent proxying in this kernel: boxes would have no way out",
}


def _attempt(*, is_root: bool) -> str:
    """Runs in the child: `fine`, what is lacking, or `failed STEP ERRNO`."""
    steps = [("network", CLONE_NEWNET), ("mount", CLONE_NEWNS)]
    if not is_root:
        steps.insert(0, ("user", CLONE_NEWUSER))
    for name, flag in steps:
        try:
            unshare(flag)
        except OSError as error:
            return f"failed {name} {error.errno}"
    try:
        raise_lo()
    except OSError as error:
        return f"failed lo {error.errno}"
    return _nftables()


def _nftables() -> str:
    from loopbox.kernel import nft  # noqa: PLC0415  (in the child only)

    try:
        nft.install(with_way_out=True)
    except HostError as error:
        return error.code
    except OSError:
        return "no-nftables"
    return "fine"


def _explained(report: str, *, is_root: bool) -> tuple[str | None, str | None]:
    """(problem, fix) of a failed attempt."""
    words = report.split()
    if words[:1] != ["failed"]:
        return None, None
    step, number = words[1], int(words[2])
    cause = os.strerror(number)
    if step == "user":
        error = user_namespace_error(OSError(number, cause))
        return error.message.removeprefix("cannot make a box: "), error.hint
    for path, what in _LIMITS:
        if _text(f"/proc/sys/{path}") == "0":
            knob = path.replace("/", ".")
            return f"{what} are switched off ({knob}=0)", f"sudo sysctl {knob}=15000"
    who = "root" if is_root else "this user"
    hint = "run outside the container, or give it CAP_SYS_ADMIN" if is_root else None
    return f"{who} may not make a {step} namespace: {cause}", hint


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
