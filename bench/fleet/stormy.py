"""A member in a storm: owns partitions, keeps checkpoints in them, stands for election, and is precise about when.

An end has to be written down before another can own what ended: a hook hears of a loss before anything is given back.
What ended during a pause ended at the lease's deadline.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import holdfast
from holdfast import HoldfastError, LeaseLost, Misuse, StaleToken
from holdfast.hooks import Event
from holdfast.sync import Lease

from .journal import now
from .member import Candidate, Owner

SAVES_EVERY_S = 0.05
KINDS = ("partition", "election")


class Stormy(Candidate, Owner):
    def connect(self) -> None:
        self.tenures: dict[int, Any] = {}  # by life
        self.mine: dict[int, Any] = {}
        self.late: list[Any] = []
        self.saving = threading.Lock()
        self.hf = holdfast.connect(self.url, hooks=[self.heard])  # the engine may be away: all that follows waits

    def heard(self, event: Event) -> None:
        if event.turnstile.kind not in KINDS:
            return
        name = event.turnstile.name
        key = "leader" if event.turnstile.kind == "election" else int(name.rpartition("/")[2])
        at = now()
        if event.kind == "held":
            tenure = self.hf.session.tenures.get(event.claim.id)
            if tenure is not None and at < tenure.deadline:
                self.tenures[event.life] = tenure
                self.journal("own", at=at, key=key, token=event.token)
        elif event.life in self.tenures and event.kind in ("released", "handed_over", "lost", "detached"):
            deadline = self.tenures.pop(event.life).deadline
            self.journal("lost", at=min(at, deadline), key=key, token=event.token, why=event.kind)

    def own(self, key: int | str, lease: Lease) -> bool:
        if key != "leader":
            with self.saving:
                self.mine[int(key)] = lease
        return True

    def lost(self, key: int | str, lease: Lease) -> None:
        super().lost(key, lease)
        if key != "leader":
            with self.saving:  # what is being saved goes first
                self.mine.pop(int(key), None)
                if lease.state == "LOST":
                    self.late.append(lease)

    def join(self) -> None:
        for work in (self._insist, self._stand, self._save_all):
            threading.Thread(target=work, daemon=True).start()

    def _insist(self) -> None:
        while True:
            try:
                return self._follow()
            except Misuse:  # we left
                return None
            except HoldfastError as trouble:
                self.journal("trouble", text=str(trouble))

    def _save_all(self) -> None:
        while True:
            time.sleep(SAVES_EVERY_S)
            with self.saving:
                if self.mine:
                    self._save(self.mine[random.choice(list(self.mine))])
                if self.late and random.random() < 0.2:  # as one would who was paused just before it
                    self._save(self.late.pop(random.randrange(len(self.late))))

    def _save(self, lease: Any) -> None:
        began = now()
        try:
            count = int(lease.load() or 0) + 1
            lease.save(b"%d" % count)
        except (StaleToken, LeaseLost) as refusal:
            self.journal("refused", key=lease.partition, token=lease.token, why=type(refusal).__name__)
        except HoldfastError as trouble:
            self.journal("trouble", text=str(trouble))
        else:
            self.journal("saved", key=lease.partition, token=lease.token, began=began, count=count)
