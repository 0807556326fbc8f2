"""Benches. The servers they need are those of the tests.

``bench.fleet`` (`make bench-fleet`, `make storm`): leaders and partitions of members that are processes.

``python -m bench`` (`make bench`): ``peers`` says who is measured, ``workloads`` how, ``report`` and ``targets`` what
comes of it. ``bench.placement`` (`make bench-placement`) and ``placement_*``: the same for placement. On their own:
``overhead``, ``wakeup``, ``herd``, ``hooks``.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
