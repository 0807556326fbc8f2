"""Builds and loads the floor: a C extension for this Python alone, with nothing but a ring's hot path for str keys."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any, Protocol, cast

from holdfast.placement import HashRing


class Floor(Protocol):
    def get_node(self, key: str, /) -> str: ...

    def locate(self, keys: list[str], /) -> list[str]: ...


def floor_of(ring: HashRing) -> Floor:
    """The floor with the points of this ring."""
    table = ring._table
    finder = cast(Any, table.finder)
    points, owners = (memoryview(part).tobytes() for part in (finder.points, finder.owners))
    return cast(Floor, _module().Floor(points, owners, table.names))


def _module() -> Any:
    """Compiled once, into a folder of its own for as long as the source does not change. Needs a compiler."""
    from setuptools import Distribution, Extension

    source = Path(__file__).with_suffix(".c")
    folder = source.parents[1] / "build" / f"floor-{source.stat().st_mtime_ns}"
    file = folder / f"placement_floor{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not file.exists():
        built = Distribution({"ext_modules": [Extension("placement_floor", [str(source)])]}).get_command_obj(
            "build_ext"
        )
        built.build_lib = built.build_temp = str(folder)
        built.ensure_finalized()
        built.run()
    spec = importlib.util.spec_from_file_location("placement_floor", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
