"""A cache that many ask at once for what is not in it: one computes the value, the others wait for it. No stampede.

The value lies in a cell. Who misses it takes the key's lock, looks again, and computes. If that one is killed in the
middle, the next in the queue finds the cell as empty as before, and computes. If it was only paused for so long that it
lost the lock, the cell refuses its late value, and it returns the one that stands: nobody ever sees two values of one
key. Who finds the value there needs no lock at all.

    python examples/cache_filled_once.py                                    # on the embedded engine; or on yours:
    python examples/cache_filled_once.py --engine redis://localhost --processes 8 --threads 16
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import harness

import holdfast
from holdfast.sync import Client


def get(hf: Client, key: str, compute: Callable[[], bytes]) -> bytes:
    """What the cache has under this key; computed here if nobody else has done so, or is about to."""
    cell = hf.cell(f"cache/{key}")
    ttl_s = hf.capabilities.ttl_s or max(1.0, hf.capabilities.min_ttl_s)  # so long others wait for one that died
    for _ in range(100):
        if (found := cell.read([]).value) is not None:
            return found
        too_late = contextlib.suppress(holdfast.LeaseLost, holdfast.StaleToken)  # we were paused, and others went on
        with too_late, hf.lock(f"cache/{key}", ttl_s=ttl_s) as lease:
            opened = cell.open(lease)
            if opened.value is None:
                opened.put(compute())
            return opened.value or b""
    raise TimeoutError(f"{key} could not be computed within a lease, 100 times")


def compute(notes: Path, seconds: float) -> bytes:
    """What is dear, and differs each time. The first who does it dies in the middle."""
    with notes.open("a") as file:
        file.write("began\n")
    with contextlib.suppress(FileExistsError):
        (notes.parent / "first").touch(exist_ok=False)
        os._exit(1)  # on the spot, as by SIGKILL
    time.sleep(seconds)
    return secrets.token_hex().encode()


def process(url: str | None, key: str, threads: int, seconds: float, folder: Path, start: int) -> None:
    """Ask from several threads at once, and note what they got."""
    with holdfast.connect(url) as hf, ThreadPoolExecutor(threads) as pool:
        asked = [pool.submit(get, hf, key, partial(compute, folder / "computed", seconds)) for _ in range(threads)]
        (folder / f"got-{start}").write_text("".join(f"{one.result().decode()}\n" for one in asked))


def main() -> bool:
    given = harness.options(__doc__, processes=4, threads=8, seconds=0.5)
    key = f"the-answer-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as text, holdfast.connect(given.engine) as hf:
        folder, began = Path(text), time.monotonic()
        harness.through_kills(
            process,
            lambda number, start: (given.engine, key, given.threads, given.seconds, folder, start),
            given.processes,
        )
        seconds = time.monotonic() - began
        computed = (folder / "computed").read_text().count("began")
        got = [value for notes in folder.glob("got-*") for value in notes.read_text().split()]
        hf.cell(f"cache/{key}").drop()
    print(f"{len(got)} asked; the first who computed the value died of it; computed anew {computed - 1} times")
    print(f"{len(set(got))} value seen, after {seconds:.1f} s")
    return computed == 2 and len(set(got)) == 1 and len(got) == given.processes * given.threads


if __name__ == "__main__":
    raise SystemExit(not main())
