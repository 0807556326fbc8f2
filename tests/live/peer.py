"""Another process that takes locks, told what to do line by line: one to be killed, stopped and resumed.

``python peer.py FACE URL OPTIONS`` reads one JSON list per line, [operation, argument…], and answers each with one JSON
line. OPTIONS are `connect`'s, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from blocking import connect

from holdfast import errors
from holdfast.contract import Request
from holdfast.engines import resolve
from holdfast.model import Claim, Turnstile


class Peer:
    """The test's end of it."""

    def __init__(self, face: str, url: str, *, launcher: Sequence[str] = (), **options: Any) -> None:
        command = [*launcher, sys.executable, __file__, face, url, json.dumps(options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

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

    def __init__(self, face: str, url: str, options: str) -> None:
        self.url = url
        self.client = connect(face, url, **json.loads(options))
        self.lease: Any = None
        self.opened: Any = None

    def pid(self) -> int:
        return os.getpid()

    def acquire(self, name: str, ttl_s: float | None = None) -> int:
        options = {} if ttl_s is None else {"ttl_s": ttl_s}
        self.lease = self.client.lock(name, **options).acquire()
        return self.lease.token

    def campaign(self, name: str, payload: str, ttl_s: float | None = None) -> int:
        self.lease = self.client.election(name, ttl_s).campaign(payload.encode())
        return self.lease.token

    def join(self, name: str, payload: str, ttl_s: float | None = None) -> int:
        self.lease = self.client.group(name).join(payload.encode(), ttl_s)
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

    def keep_the_gil(self, seconds: float) -> None:
        """As a C extension does that works for so long and lets no other thread run."""
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))

    def block_the_loop(self, seconds: float) -> None:
        """As an async function does that calls what blocks."""

        async def block() -> None:
            time.sleep(seconds)  # noqa: ASYNC251

        self.client._loop.run(block())

    def close_client(self) -> None:
        self.client.close()

    def signal_inside(self, number: int) -> None:
        """Be hit by a signal in the middle of a transaction on SQLite, which has written."""

        def body(desk: Any) -> None:
            desk.enter(Turnstile("lock", "half", 1), Claim("half", 1, 60.0), False)
            os.kill(os.getpid(), number)

        link = resolve(self.url, "", None).blocking_link()
        link.call(Request("half", body, lambda reply: None), 5.0)
        link.close()

    def limit_files(self, size: int) -> None:
        """Write nothing beyond this size, as on a full disk; -1 is as large as may be."""
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most if size < 0 else size, most))


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
