"""Where loopbox keeps what: the runtime, state and configuration directories of this user.

Owns: the rule (CONTRACT: XDG first, then /run for root, then /tmp with the owner checked) and the
opening of the runtime directory without following links.
Must never: be opened by a name somebody else may have put there: a directory that is a link, is
another user's or is open to others is refused, never repaired.

Example::

    with_fd = open_runtime_directory(create=True)   # a descriptor; connect below it
"""

from __future__ import annotations

import os

from loopbox.errors import KeeperError

_PRIVATE = 0o700

RUNTIME_ENTRIES = ("boxes", "files", "labs", "keeper.lock", "keeper.sock", "start.lock")
"""What loopbox makes in the runtime directory."""
STATE_ENTRIES = ("keeper.log", "names.json")
"""What it makes in the state directory: names, and what names that were turned over begin with."""


def runtime_path() -> str:
    """The directory of the control socket and of what lives as long as the machine is up."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    uid = os.geteuid()
    if base.startswith("/") and _is_mine(base, uid):
        return f"{base.rstrip('/')}/loopbox"
    return "/run/loopbox" if uid == 0 else f"/tmp/loopbox-{uid}"


def state_path() -> str:
    """The directory of logs and of what outlives a reboot."""
    return f"{_base('XDG_STATE_HOME', '.local/state')}/loopbox"


def config_path() -> str:
    """The user's configuration file."""
    return f"{_base('XDG_CONFIG_HOME', '.config')}/loopbox/config.toml"


def _base(variable: str, below_home: str) -> str:
    value = os.environ.get(variable, "")
    return value.rstrip("/") if value.startswith("/") else f"{_home()}/{below_home}"


def _home() -> str:
    home = os.environ.get("HOME", "")
    if home.startswith("/"):
        return home.rstrip("/")
    import pwd  # noqa: PLC0415  (off the hot path: HOME is nearly always set)

    return pwd.getpwuid(os.geteuid()).pw_dir.rstrip("/")


def _is_mine(directory: str, uid: int) -> bool:
    # sudo keeps the caller's XDG_RUNTIME_DIR: root must not leave its socket in a user's.
    # And where others may rename what is ours, they could put theirs in its place.
    try:
        status = os.stat(directory)
    except OSError:
        return False
    return status.st_uid == uid and (not status.st_mode & 0o022 or bool(status.st_mode & 0o1000))


def open_runtime_directory(*, create: bool) -> int:
    """A descriptor of the runtime directory; the caller closes it.

    Raises FileNotFoundError when it is not there and `create` is false, KeeperError when it is a
    link, somebody else's, or open to others.
    """
    path = runtime_path()
    if create:
        mask = os.umask(0o077)  # with 0777 even its owner could not open it
        try:
            os.mkdir(path, _PRIVATE)
        except FileExistsError:
            pass
        except OSError as error:
            raise KeeperError(
                f"cannot make runtime directory `{path}`: {error.strerror}",
                hint="set XDG_RUNTIME_DIR to a directory of your own",
            ) from error
        finally:
            os.umask(mask)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        cause = "it is a link or no directory" if error.errno in (20, 40) else error.strerror
        raise KeeperError(
            f"cannot trust runtime directory `{path}`: {cause}",
            hint=f"see who put it there: ls -ld {path}",
        ) from error
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        whose = "another user's" if status.st_uid != os.geteuid() else "open to other users"
        raise KeeperError(
            f"cannot trust runtime directory `{path}`: it is {whose}",
            hint=f"see who put it there: ls -ld {path}",
        )
    return fd
