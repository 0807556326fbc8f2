"""The flash sale of the examples, with a kill every second: how many orders a second, and whether one went wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[2] / "examples"))

import flash_sale

ORDERS, WORKERS, AT_ONCE, KILL_EVERY_S = 200_000, 10, 20, 1.0


class Sale(NamedTuple):
    orders: int
    served: int
    stock: int
    kills: int
    seconds: float
    wrong: list[str]


def measure(url: str, orders: int = ORDERS, workers: int = WORKERS) -> Sale:
    """There is enough for four of five."""
    stock = orders * 4 // 5
    found = flash_sale.run(url, orders, stock, workers, AT_ONCE, KILL_EVERY_S)
    return Sale(found["orders"], found["served"], stock, found["kills"], found["seconds"], found["wrong"])
