"""The shape of the house: who may import whom, who may touch the machine, what a module says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src/loopbox"
TESTS = Path(__file__).resolve().parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    # part: the parts it stands on (errors is everybody's)
    "errors": set(),
    "model": set(),
    "places": set(),
    "wire": {"model"},
    "rules": {"model", "wire"},
    "settings": {"model", "rules", "wire"},
    "kernel": {"model", "rules", "settings", "wire"},
    "lab": {"kernel", "model", "rules", "settings", "wire"},
    "keeper": {"kernel", "lab", "model", "places", "rules", "settings", "wire"},
    "starting": {"places", "wire"},
    "client": {"kernel", "places", "starting", "wire"},
    "library": {"client", "kernel", "lab", "model", "rules", "settings", "wire"},
    "lab_library": {"client", "lab", "library", "places"},
    "pytest_plugin": {"client", "kernel", "lab_library", "library"},
    "cli": {
        "client",
        "kernel",
        "lab",
        "model",
        "places",
        "rules",
        "settings",
        "starting",
        "wire",
    },
}
"""Between `cli` and `keeper` stands only `wire.control`: neither imports the other."""

PURE = ("rules", "wire")
UNTOUCHABLE = {
    "asyncio",
    "ctypes",
    "datetime",
    "fcntl",
    "os",
    "random",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}
"""What a decision or a codec has no business with: the machine and the clock."""

LONG = {"keeper/relay_python.py"}
"""Modules over 400 lines; this list may only shrink. Each says why in its charter."""

LIBRARY_DOOR = SOURCE / "lab/__init__.py"
"""The package that is also `loopbox.lab()`: it hands the call up to `lab_library`."""

MODULES = sorted(SOURCE.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Modules imported, those only for type checkers left out."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            if node.module:
                found.add(node.module)
                found.update(f"{node.module}.{alias.name}" for alias in node.names)

    Visitor().visit(tree)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_stands_only_on_what_is_below(path: Path) -> None:
    """No module imports a part that stands above or beside its own."""
    part = _part(path)
    if part in ("__init__", "__main__") or path == LIBRARY_DOOR:
        return
    own = {name.split(".")[1] for name in _imports(path) if name.startswith("loopbox.")}
    reached = {name for name in own if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").exists()}

    assert set() == reached - MAY_IMPORT[part] - {part, "errors"}


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if _part(path) in PURE],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_decisions_and_codecs_do_not_touch_the_machine(path: Path) -> None:
    """rules/ and wire/ import nothing that reads a clock, a file, a socket or a process."""
    assert set() == {name.split(".")[0] for name in _imports(path)} & UNTOUCHABLE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_opens_with_its_charter(path: Path) -> None:
    """Every module says what it owns; all but a package's face say what it must never do."""
    charter = ast.get_docstring(ast.parse(path.read_text())) or ""

    assert charter
    if path.name not in ("__init__.py", "__main__.py"):
        assert "Must never" in charter


def test_no_module_has_grown_into_a_god_file() -> None:
    """Modules over 400 lines are on the list, and the list holds no others."""
    long = {str(path.relative_to(SOURCE)) for path in MODULES if path.read_text().count("\n") > 400}

    assert LONG == long


def _sleeps(path: Path) -> list[int]:
    """Lines that call time.sleep, or asyncio.sleep for a second or more."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr="sleep")):
                found.append(node.lineno)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="asyncio"), attr="sleep"),
                args=[ast.Constant(value=int() | float() as seconds)],
            ) if seconds >= 1:
                found.append(node.lineno)
    return found


def test_tests_do_not_sleep() -> None:
    """A test waits for a condition with a deadline, never for time to pass."""
    sleepers = {
        str(path.relative_to(TESTS)): lines
        for path in TESTS.rglob("*.py")
        if (lines := _sleeps(path))
    }

    assert {} == sleepers
