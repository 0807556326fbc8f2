"""Members by others: kazoo's SetPartitioner, and tooz's partitioned groups.

Neither says of one partition who owns it: what is written down is each member's own view of what is its own. kazoo's
holds a lock for each and lets all of them go at every change; tooz's is a hash ring over the members it has seen.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from .member import NAME, Member

STABLE_S = 0.5
"""kazoo: how long its party must have been stable before it is shared out. Its default is 30 s."""

POLL_S = 0.1
"""tooz: how often its watchers are run, which is left to the user."""


class Viewer(Member):
    """Writes down what comes and goes in its own view."""

    def connect(self) -> None:
        self.mine: set[int] = set()
        self.everything = range(self.options["count"])

    def view(self, now_mine: set[int]) -> None:
        for partition in sorted(self.mine - now_mine):
            self.journal("lost", key=partition, token=0)
        for partition in sorted(now_mine - self.mine):
            self.journal("own", key=partition, token=0)
        self.mine = now_mine

    def join(self) -> None:
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self) -> None:
        raise NotImplementedError


class Kazoo(Viewer):
    """As its documentation says to use it."""

    def connect(self) -> None:
        from kazoo.client import KazooClient

        super().connect()
        self.client: Any = KazooClient(self.url.partition("://")[2].partition("?")[0], timeout=self.options["stands_s"])
        self.client.start(30)

    def follow(self) -> None:
        while True:
            partitioner = self.client.SetPartitioner(
                f"/{NAME}", self.everything, identifier=self.journal.writer, time_boundary=STABLE_S
            )
            while not partitioner.failed:
                if partitioner.release:
                    self.view(set())
                    partitioner.release_set()
                elif partitioner.acquired:
                    partitioner.state_change_event.clear()
                    if partitioner.acquired:
                        self.view(set(partitioner))
                        partitioner.state_change_event.wait()
                elif partitioner.allocating:
                    partitioner.wait_for_acquire(1)
            self.view(set())


class Tooz(Viewer):
    """A ring of the members that it has seen, looked at as often as its watchers run."""

    def connect(self) -> None:
        from tooz import coordination

        super().connect()
        self.coordinator = coordination.get_coordinator(self._where(), self.journal.writer.encode())
        self.coordinator.start(start_heart=True)

    def _where(self) -> str:
        scheme, _, rest = self.url.partition("://")
        host, stands_s = rest.partition("?")[0], self.options["stands_s"]
        return {
            "redis": f"redis://{host}?membership_timeout={stands_s:g}&timeout={stands_s:g}",
            "etcd": f"etcd3+http://{host}?membership_timeout={stands_s:.0f}&timeout={stands_s:.0f}",
            "zookeeper": f"kazoo://{host}?timeout={stands_s:.0f}",
        }[scheme]

    def follow(self) -> None:
        partitioner = self.coordinator.join_partitioned_group(NAME.encode())
        seen: set[object] = set()
        while True:
            try:
                self.coordinator.run_watchers()
            except Exception as trouble:  # it is tried again
                self.journal("trouble", text=repr(trouble))
            if seen != (members := set(partitioner.ring.nodes)):
                seen = members
                self.view({one for one in self.everything if partitioner.belongs_to_self(one)})
            time.sleep(POLL_S)


KINDS: dict[str, type[Member]] = {"kazoo": Kazoo, "tooz": Tooz}

ON = {"redis": ("tooz",), "zookeeper": ("kazoo", "tooz"), "etcd": ("tooz",)}
"""Which of them work where. tooz's other drivers have no groups."""

TITLES = {"owner": "holdfast", "kazoo": "kazoo SetPartitioner", "tooz": "tooz partitioner"}
