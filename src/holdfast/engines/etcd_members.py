"""Which member is asked, and as whom: shared by everything of one link."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import HoldfastError, Unavailable
from .etcd_target import Target, name_of
from .etcd_wire import Ask, NoLeader, TokenRefused, ask, checked

log = logging.getLogger("holdfast.etcd")


class Members:
    """The members of a cluster, and the one that is asked until it fails. ``login`` is what the server gave us."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.at = 0
        self.login = b""
        self.names = [name_of(host).encode() for host in target.hosts]

    def failed(self, member: int, trouble: object) -> None:
        """Ask another from now on."""
        if member == self.at:
            self.at = (member + 1) % len(self.names)
            log.info("etcd at %s: %s", self.names[member].decode(), trouble)

    @property
    def name(self) -> str:
        return self.names[self.at].decode()

    # -- login

    @property
    def needs_login(self) -> bool:
        return bool(self.target.user and not self.login)

    def login_request(self) -> Ask:
        return ask("/v3/auth/authenticate", {"name": self.target.user, "password": self.target.password}, reads=True)

    def logged_in(self, reply: Any) -> None:
        self.login = checked(reply)["token"].encode()


class Tries:
    """The tries of one exchange: each member once, and once more for a login that has ended.

    An exchange that surely did nothing is tried with the next member at once.
    """

    def __init__(self, members: Members, until: float) -> None:
        self._members = members
        self._left = len(members.names)
        self._logins = 2
        self.until = until
        self._whys: list[str] = []

    def share_s(self, now: float) -> float:
        """How long one try may take to connect: its share of the time, as others may have to follow."""
        return max(0.05, (self.until - now) / max(1, self._left))

    def failed(self, member: int, trouble: HoldfastError, now: float) -> None:
        """Raises it where there is nobody left to ask."""
        self._members.failed(member, trouble)
        self._left -= 1
        self._whys.append(str(trouble))
        if self._left <= 0 or now >= self.until:
            whys = dict.fromkeys(self._whys)
            raise trouble if len(whys) == 1 else Unavailable("; ".join(whys))

    def again(self, member: int, replies: list[Any], now: float) -> bool:
        """Whether these replies only say that somebody else, or a new login, is needed."""
        if any(isinstance(reply, TokenRefused) for reply in replies):
            self._members.login = b""
            self._logins -= 1
            return self._logins > 0
        if replies and all(isinstance(reply, NoLeader) for reply in replies):
            self.failed(member, replies[0], now)
            return True
        return False
