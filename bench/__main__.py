"""Run every bench and print (or, with a file's name, also write) one page of tables."""

from __future__ import annotations

import sys
from pathlib import Path

from . import contended, etcd, leases, postgres, quorum, uncontended, zookeeper
from .common import machine


def main() -> None:
    parts = (uncontended, contended, leases, etcd, postgres, zookeeper, quorum)
    page = "\n".join(["# Measured\n", machine() + "\n", *(part.main() for part in parts)])
    print(page)
    for name in sys.argv[1:]:
        Path(name).write_text(page)


if __name__ == "__main__":
    main()
