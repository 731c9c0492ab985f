"""Where the installed command begins: the hot path first, the rest only when needed.

Owns: telling `run`, `exec` and `shell` (a bare interpreter's time, nothing imported) from all
other commands (click, rich, json).
Must never: import anything heavy at the top.

Example::

    loopbox run -- npm run dev
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` imports enum, 2 ms
import sys


def main() -> int:
    """The console script. Returns the exit status, or never when a program takes over."""
    # Until it is known what is to be done, Ctrl-C ends this as it ends any program: quietly. What
    # the caller ignores (a shell's background job) stays ignored.
    handler = _signal.getsignal(_signal.SIGINT)
    if handler != _signal.SIG_IGN:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from loopbox.cli.hot import try_hot_path  # noqa: PLC0415

    status = try_hot_path(sys.argv[1:])
    if status is not None:
        return status
    import gc  # noqa: PLC0415

    # Everything a module makes stays: to look through it again and again costs 8 ms of 120.
    gc.set_threshold(20_000, 20, 20)
    from loopbox.cli.app import main as cold  # noqa: PLC0415

    _signal.signal(_signal.SIGINT, handler)
    return cold(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
