"""The compiled kernel of `holdfast.placement`; everything else stands in pyproject.toml.

Optional: where it cannot be built (no compiler), the install goes on, and `_kernel.py` does the same, slower.
"""

from sys import platform
from sysconfig import get_config_var

from setuptools import Extension, setup

HERE = "src/holdfast/placement/"
PARTS = ("base", "batch", "change", "fill", "finders", "hash", "ring", "table")
# One binary for Python 3.11 and every later one. Free-threaded builds have no limited API and get a binary each.
limited = not get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "holdfast.placement._kernel",
            [HERE + "_kernel.c"],
            depends=[HERE + f"_kernel_{part}.h" for part in PARTS],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if limited else [],
            # Placements are the same on every machine: no multiplication is fused with an addition. (MSVC fuses none.)
            extra_compile_args=[] if platform == "win32" else ["-ffp-contract=off"],
            py_limited_api=limited,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
