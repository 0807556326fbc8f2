"""Which member is asked, and as whom: shared by everything of one link."""

from __future__ import annotations

import logging
import ssl
from typing import Any

from ...errors import HoldfastError, Unavailable, Unsupported
from .messages import STATUS, Ask, authenticate
from .replies import checked
from .target import Target, name_of
from .wire import NoLeader, TokenRefused, too_old

log = logging.getLogger("holdfast.etcd")


class Members:
    """The members of a cluster, and the one that is asked until it fails. ``login`` is what the server gave us."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.at = 0
        self.login = b""
        self.names = [name_of(host) for host in target.hosts]
        self._known: set[int] = set()  # their version is new enough

    def failed(self, member: int, trouble: object) -> None:
        """Ask another from now on."""
        if member == self.at:
            self.at = (member + 1) % len(self.names)
            log.info("etcd at %s: %s", self.names[member], trouble)

    def greeting(self, member: int) -> Ask | None:
        """What has to be asked before anything else: a login, then the version."""
        if self.target.user and not self.login:
            return authenticate(self.target.user, self.target.password)
        return None if member in self._known else STATUS

    def greeted(self, member: int, greeting: Ask, reply: Any) -> None:
        if greeting is not STATUS:
            self.login = checked(reply)
            return
        if (error := too_old(checked(reply), self.names[member])) is not None:
            raise error
        self._known.add(member)

    def not_connected(self, member: int, error: Exception) -> HoldfastError:
        name = self.names[member]
        if isinstance(error, ssl.SSLCertVerificationError):
            return Unavailable(f"the certificate of etcd at {name} is not trusted: {error.verify_message}; give ca=")
        if isinstance(error, ssl.SSLError):
            return Unavailable(f"no TLS with etcd at {name}: {error.reason or error}")
        why = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        return Unavailable(f"no connection to etcd at {name}: {why}")


class Tries:
    """The tries of one exchange: each member once, and once more for a login that has ended.

    An exchange that surely did nothing is tried with the next member at once.
    """

    def __init__(self, members: Members, until: float) -> None:
        self.until = until
        self._members = members
        self._left = len(members.names)
        self._logins = 2
        self._troubles: list[HoldfastError] = []

    def share_s(self, now: float) -> float:
        """How long one try may take to connect: its share of the time, as others may have to follow."""
        return max(0.05, (self.until - now) / max(1, self._left))

    def failed(self, member: int, trouble: HoldfastError, now: float) -> None:
        """Raises it where there is nobody left to ask."""
        self._members.failed(member, trouble)
        self._left -= 1
        self._troubles.append(trouble)
        if self._left <= 0 or now >= self.until:
            if len(self._troubles) == 1:
                raise trouble
            hopeless = all(isinstance(one, Unsupported) for one in self._troubles)
            raise (Unsupported if hopeless else Unavailable)("; ".join(dict.fromkeys(map(str, self._troubles))))

    def again(self, member: int, replies: list[Any], now: float) -> bool:
        """Whether these replies only say that somebody else, or a new login, is needed."""
        if any(isinstance(reply, TokenRefused) for reply in replies):
            self._members.login = b""
            self._logins -= 1
            return self._logins > 0 and all(isinstance(reply, TokenRefused) for reply in replies)  # else some were done
        if replies and all(isinstance(reply, NoLeader) for reply in replies):
            self.failed(member, replies[0], now)
            return True
        return False
