"""loopbox: a loopback interface of its own for every project on a machine.

`loopbox.box("shop")` and `loopbox.lab("triangle.toml")` are the library's two doors; they are
imported on first use, so that `import loopbox` (and with it every start of the command) costs
next to nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
