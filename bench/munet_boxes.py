"""Plain boxes on a bridge by munet, for bench/labs.py: up, a line, down once a line comes in.

Run by the Python that has munet, in a PID namespace of its own: munet reads /proc/1/ns, which is
another user's wherever the machine's own init is. One call of munet's is helped: it asks pgrep for
a child that may not have been forked yet, and gives up when there is none.

Usage: unshare -pf --mount-proc python munet_boxes.py COUNT FOLDER
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from munet import base, parser  # type: ignore[import-not-found]

PATIENCE_S = 10.0


def patient(call: Any) -> Any:
    """`call`, asked again while what it runs is pgrep and finds nobody."""

    def again(self: Any, command: Any, *args: Any, **options: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call(self, command, *args, **options)
            except Exception:
                is_pgrep = isinstance(command, list) and str(command[0]).endswith("pgrep")
                if not is_pgrep or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    return again


async def main(count: int, folder: Path) -> None:
    """One run."""
    logging.disable(logging.INFO)  # it tells of every command, at length
    base.Commander.cmd_raises = patient(base.Commander.cmd_raises)
    topology = {
        "networks-autonumber": True,
        "networks": [{"name": "net0"}],
        "nodes": [{"name": f"n{number}", "connections": ["net0"]} for number in range(count)],
    }
    file = folder / "munet.json"
    file.write_text(json.dumps({"version": 1, "topology": topology}), encoding="utf-8")
    unet = await parser.async_build_topology(
        parser.get_config(str(file)), rundir=str(folder / "run")
    )
    print("up", flush=True)
    sys.stdin.readline()
    await unet.async_delete()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
