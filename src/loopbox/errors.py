"""The errors a user can meet: what was attempted, on what, why it failed, what to do next.

Owns: the six user errors and how each maps to an exit status. Builtin exceptions are for
programmer mistakes. The name says who is wrong: the command line, a file, this machine, a box,
the keeper, or nobody (time ran out).

Must never: import anything of loopbox (everything imports this), format for a terminal.

Example::

    raise ConfigError(
        "cannot read `loopbox.toml`: line 3: `forward` must be a list of ports",
        hint="write forward = [5432]",
    )
"""

from __future__ import annotations


class LoopboxError(Exception):
    """Base of every error that is shown to a user as one line, without a traceback.

    `message` is lower-case and reads "cannot ACT OBJECT: CAUSE"; `hint` is the next command or
    edit, or None; `code` is a stable kebab-case word for programs.
    """

    code = "failed"
    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code


class UsageError(LoopboxError):
    """The command line is wrong."""

    code = "usage"
    exit_status = 2


class ConfigError(LoopboxError):
    """A file of the user's is wrong; the message names file and line."""

    code = "bad-config"
    exit_status = 2


class HostError(LoopboxError):
    """This machine forbids or lacks something; the hint says how to get it."""

    code = "host"


class BoxError(LoopboxError):
    """A box is not there, is stopped, or refuses what was asked of it."""

    code = "box"


class KeeperError(LoopboxError):
    """The keeper cannot be started, reached or trusted."""

    code = "keeper"


class DeadlineError(LoopboxError):
    """The time the user allowed ran out."""

    code = "timeout"


def linux_only(what: str) -> HostError:
    """The refusal of what needs Linux namespaces, on a system that has none."""
    return HostError(
        f"cannot {what}: boxes and labs are on Linux only",
        hint="what works here: loopbox audit, doctor, addr, classify",
        code="linux-only",
    )
