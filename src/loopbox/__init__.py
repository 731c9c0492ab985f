"""loopbox: a loopback interface of its own for every project on a machine.

`loopbox.box("shop")` and `loopbox.lab("triangle.toml")` are the library's two doors; they are
imported on first use, so that `import loopbox` (and with it every start of the command) costs
next to nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["Box", "Lab", "__version__", "box", "lab"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loopbox.lab_library import Lab, lab
    from loopbox.library import Box, box


def __getattr__(name: str) -> object:
    if name in ("Box", "box"):
        from loopbox import library  # noqa: PLC0415

        return getattr(library, name)
    if name == "Lab":
        from loopbox import lab_library  # noqa: PLC0415

        return lab_library.Lab
    if name == "lab":
        import importlib  # noqa: PLC0415

        return importlib.import_module("loopbox.lab")
    raise AttributeError(f"module `loopbox` has no attribute `{name}`")
