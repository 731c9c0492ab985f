"""loopbox: a loopback interface of its own for every project on a machine.

`loopbox.box("shop")` and `loopbox.lab("triangle.toml")` are the library's two doors; they are
imported on first use, so that `import loopbox` (and with it every start of the command) costs
next to nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["Box", "__version__", "box"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loopbox.library import Box, box


def __getattr__(name: str) -> object:
    if name in ("Box", "box"):
        from loopbox import library  # noqa: PLC0415

        return getattr(library, name)
    raise AttributeError(f"module `loopbox` has no attribute `{name}`")
