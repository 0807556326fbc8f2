"""Another process that takes locks, told what to do line by line: one to be killed, stopped and resumed.

``python peer.py FACE URL`` reads one JSON list per line, [operation, argument…], and answers each with one JSON line.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from blocking import connect

from holdfast import errors


class Peer:
    """The test's end of it."""

    def __init__(self, face: str, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, face, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def do(self, *order: Any) -> Any:
        """What it answers; raises what it raised."""
        self.order(*order)
        return self.answer()

    def order(self, *order: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")

    def answer(self) -> Any:
        assert self.process.stdout
        error, value = json.loads(self.process.stdout.readline())
        if error:
            raise getattr(errors, error)(value)
        return value

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Orders:
    """The other end: one lease, one open cell."""

    def __init__(self, face: str, url: str) -> None:
        self.client = connect(face, url)
        self.lease: Any = None
        self.opened: Any = None

    def acquire(self, name: str, ttl_s: float) -> int:
        self.lease = self.client.lock(name, ttl_s=ttl_s).acquire()
        return self.lease.token

    def open(self, name: str) -> str:
        self.opened = self.client.cell(name).open(self.lease)
        return (self.opened.value or b"").decode()

    def put(self, text: str) -> None:
        self.opened.put(text.encode())

    def state(self) -> str:
        return self.lease.state

    def wait_lost(self, timeout_s: float) -> bool:
        return self.lease.wait_lost(timeout_s)

    def ensure_held(self) -> None:
        self.lease.ensure_held()

    def release(self) -> None:
        self.lease.release()


def main() -> None:
    orders = Orders(*sys.argv[1:])
    for line in sys.stdin:
        operation, *args = json.loads(line)
        try:
            answer: Any = [None, getattr(orders, operation)(*args)]
        except errors.HoldfastError as error:
            answer = [type(error).__name__, str(error)]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
