"""Where the installed command begins: the hot path first, the rest only when needed.

Owns: telling `run`, `exec` and `shell` (a bare interpreter's time, nothing imported) from all
other commands (click, rich, json).
Must never: import anything heavy at the top.

Example::

    loopbox run -- npm run dev
"""

from __future__ import annotations

import sys


def main() -> int:
    """The console script. Returns the exit status, or never when a program takes over."""
    from loopbox.cli.hot import try_hot_path  # noqa: PLC0415

    status = try_hot_path(sys.argv[1:])
    if status is not None:
        return status
    from loopbox.cli.app import main as cold  # noqa: PLC0415

    return cold(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
