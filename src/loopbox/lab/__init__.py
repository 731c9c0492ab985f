"""Labs: boxes, links, services and routers declared in a file.

The package is also the library's door: `loopbox.lab("triangle.toml")` calls it. A function of
that name could not be: whoever imports a module below would put this package in its place.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Door(ModuleType):
    """A module that can be called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """`loopbox.lab_library.lab`."""
        from loopbox.lab_library import lab  # noqa: PLC0415  brings the client and all of lab/

        return lab(*arguments, **options)


sys.modules[__name__].__class__ = _Door
