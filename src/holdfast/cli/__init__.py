"""The command, one file per verb. Needs the ``cli`` extra (click and rich)."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of ``holdfast`` and ``python -m holdfast``."""
    try:
        import click  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import rich  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError as missing:
        print(f"holdfast: the command needs {missing.name}: pip install 'holdfast[cli]'", file=sys.stderr)
        sys.exit(2)
    from .main import run

    run()
