"""Run by test_frr_triangle as a plain user: the triangle in a user namespace of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT / "src")]

from labworld import LabWorld, until  # noqa: E402

from loopbox.errors import HostError  # noqa: E402
from loopbox.kernel.namespaces import enter_new_user_namespace  # noqa: E402
from loopbox.lab.topology import load  # noqa: E402


def main() -> int:
    """Converge, cut one link, and print what held and what dropped."""
    try:
        enter_new_user_namespace()
    except HostError as error:
        print(error, file=sys.stderr)
        return 3
    with LabWorld(load(Path(sys.argv[1]))) as world:
        until(lambda: world.established() == set(world.sessions()), seconds=30)
        before = world.sessions()
        world.cut(world.lab.link("r1-r2"))
        until(lambda: "r1-r2 on r1-r2" not in world.established(), seconds=10)
        after = world.sessions()
        kept = {"r1-r2", "r1-r3", "r2-r3"}
        held = all(before[key][0].established == after[key][0].established for key in kept)
        print(json.dumps({"converged": True, "held": held, "dropped": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
