"""Imports run down the page only, and importing holdfast costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import holdfast

ROOT = Path(holdfast.__file__).parent
PAGE = """
    __main__ cli lab store fleet testing compat aio sync renewing worlds fence engines core placement hooks world
    contract model errors
"""
HOUSE = PAGE.split()
CLIENTS = {
    "redis": "engines",
    "kazoo": "engines",
    "psycopg": "engines",
    "sqlite3": "engines",
    "click": "cli",
    "rich": "cli",
    "pytest": "testing",
    "prometheus_client": "hooks",
    "opentelemetry": "hooks",
}


FILES_OF_THEIR_OWN = {("each_input.py", "sqlite3")}
"""Where it is no engine's client: a temporary file."""


def imports() -> list[tuple[Path, str, str]]:
    """Every import of the package: file, the room it stands in, and the full name of what it imports."""
    found = []
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        package = ["holdfast", *parts[:-1]]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found += [(file, parts[0], name.name) for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                found += [(file, parts[0], f"{module}.{name.name}") for name in node.names]
    return found


def test_imports_run_down_the_page() -> None:
    for file, room, name in imports():
        target = name.split(".")[1] if name.startswith("holdfast.") else ""
        if room == "__init__" or target in ("", room) or target not in HOUSE:
            continue
        assert room in HOUSE, f"{file}: a room that is not on the page"
        assert HOUSE.index(room) < HOUSE.index(target), f"{file} imports {name}, which stands above it"


def test_placement_knows_only_errors_and_model() -> None:
    for file, room, name in imports():
        if room == "placement" and name.startswith("holdfast."):
            assert name.split(".")[1] in ("placement", "errors", "model"), f"{file} imports {name}"


def test_protocols_know_no_clock_socket_thread_or_loop() -> None:
    for file, room, name in imports():
        if room == "core":
            assert name.split(".")[0] not in ("time", "socket", "threading", "asyncio", "queue", "select"), (
                f"{file}: {name}"
            )


def test_a_client_library_is_imported_where_it_belongs_only() -> None:
    for file, room, name in imports():
        library = name.split(".")[0]
        if library in CLIENTS and (file.name, library) not in FILES_OF_THEIR_OWN:
            assert room == CLIENTS[library], f"{file} imports {library}"


def test_importing_holdfast_loads_neither_asyncio_nor_the_upper_rooms() -> None:
    code = "import sys, holdfast; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "holdfast" in loaded
    for name in (
        "asyncio",
        "typing",
        *(f"holdfast.{room}" for room in ("cli", "lab", "store", "fleet", "sync", "core")),
    ):
        assert name not in loaded


def test_a_blocking_client_loads_no_asyncio() -> None:
    code = "import sys, holdfast; holdfast.connect('memory://').lock('x').acquire(); print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "holdfast.sync" in loaded
    assert not {"redis", "kazoo", "sqlite3", "click"} & set(loaded)
