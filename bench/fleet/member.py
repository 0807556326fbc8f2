"""A process of a fleet: ``python -m bench.fleet.member KIND URL NAME FOLDER OPTIONS``. Commands come by its stdin.

It says ``ready`` once it is connected; then each line names a method. Its stdin's end is its own.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import holdfast
from holdfast import HoldfastError, Misuse
from holdfast.sync import Client, Lease

from .journal import Journal, now

NAME = "fleet"


class Member:
    """Of one kind; ``options`` are that kind's."""

    def __init__(self, url: str, journal: Journal, options: dict[str, Any]) -> None:
        self.url, self.journal, self.options = url, journal, options
        self.connect()

    def connect(self) -> None:
        """Everything that is to be there before it is told to join."""

    def join(self) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        """Go, and let others take over."""


class HoldfastMember(Member):
    """What both kinds of ours share: how they know what they own, and until when."""

    hf: Client

    def connect(self) -> None:
        self.hf = holdfast.connect(self.url)
        self.hf.ping()

    def own(self, key: int | str, lease: Lease) -> bool:
        at = now()
        if not lease.is_held:  # it was paused for so long that what it was given is over
            return False
        self.journal("own", at=at, key=key, token=lease.token)
        return True

    def lost(self, key: int | str, lease: Lease) -> None:
        """It owns this no more: from its lease's deadline on, if that is over."""
        deadline = lease._tenure.deadline  # pyright: ignore[reportPrivateUsage]
        self.journal("lost", at=min(now(), deadline), key=key, token=lease.token, why=lease.state)

    def leave(self) -> None:
        self.hf.close()


class Candidate(HoldfastMember):
    """Leads when its turn comes; stands for election again when it resigned."""

    leadership: Any = None

    def join(self) -> None:
        threading.Thread(target=self._stand, daemon=True).start()

    def _stand(self) -> None:
        while True:
            try:
                leadership = self.hf.election(NAME, ttl_s=self.options["ttl_s"]).campaign(self.journal.writer.encode())
            except Misuse:  # we left
                return
            except HoldfastError as trouble:
                self.journal("trouble", text=str(trouble))
                continue
            if self.own("leader", leadership):
                self.leadership = leadership
                if leadership.wait_lost():
                    self.lost("leader", leadership)

    def resign(self) -> None:
        self.lost("leader", self.leadership)
        self.leadership.resign()


class Owner(HoldfastMember):
    """Owns its share of partitions, and reads what comes and goes as a stream."""

    share: Any = None

    def join(self) -> None:
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        partitions = self.hf.partitions(NAME, self.options["count"], ttl_s=self.options["ttl_s"])
        with partitions.join() as self.share:
            for event in self.share.events():
                (self.own if event.kind == "ASSIGNED" else self.lost)(event.partition, event.lease)

    def leave(self) -> None:
        if self.share is not None:
            self.share.leave()
        super().leave()


def kinds() -> dict[str, type[Member]]:
    from . import peers, stormy

    ours: dict[str, type[Member]] = {"candidate": Candidate, "owner": Owner, "stormy": stormy.Stormy}
    return ours | peers.KINDS


def main(kind: str, url: str, name: str, folder: str, options: str) -> None:
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")
    member = kinds()[kind](url, Journal(Path(folder), name), json.loads(options))
    print("ready", flush=True)
    for line in sys.stdin:
        getattr(member, line.strip())()
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
