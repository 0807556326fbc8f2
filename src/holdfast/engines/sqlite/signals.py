"""Signals between processes of one machine: a datagram socket per process, sent to without blocking.

A signal is a hint: whoever cannot take it now (its queue is full, it is stopped) does not get it, and looks again
when it finds its queue to have been full.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import socket
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from ...errors import Misuse
from ...model import Signal

SUFFIX = ".s"
UNIX = os.name == "posix"
"""Whether there are datagram sockets with a path; else loopback UDP, and a secret beside the file to know ours by."""

PATH_BYTES = 100  # what every system takes as the path of a socket
PER_DATAGRAM = 64
BETWEEN = "\udcff"  # half of a surrogate pair, which no name holds; one byte on the way, which no UTF-8 holds
FULL = 8
"""So many datagrams at one reading mean that others may have found no room (Linux queues 10 or 11)."""

PEERS = 64
"""To so many others a connected socket is kept: it spares each signal the way along their path."""

WAKE = b"."
"""Half of a signal, which says nothing. What is empty could not be told from what is not there."""

_NOBODY = (errno.ENOENT, errno.ECONNREFUSED)


class Post:
    """Sends to the inboxes of one folder, and once `bind` was called receives for its own."""

    def __init__(self, folder: Path, inbox: str, mode: int) -> None:
        self._folder = folder
        self._inbox = inbox
        self._mode = mode
        self._unix = UNIX
        self._short = folder if not self._unix else _short(folder, len(inbox) + len(SUFFIX) + 1)
        self._nonce = b""
        self._sender = self._socket()
        self._peers: dict[str, socket.socket] = {}
        self._closed = False
        self.receiver: socket.socket | None = None
        _posts.add(self)

    def _socket(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX if self._unix else socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        return made

    def bind(self) -> socket.socket:
        """From here on nothing sent to our inbox is missed."""
        receiver = self._socket()
        try:
            self._bind(receiver)
        except BaseException:
            receiver.close()
            raise
        self.receiver = receiver
        return receiver

    def _bind(self, receiver: socket.socket) -> None:
        if self._unix:
            address = self._address(self._inbox)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
            receiver.bind(address)
            os.chmod(address, self._mode)
        else:
            self._nonce = secrets.token_bytes(16)
            receiver.bind(("127.0.0.1", 0))
            place = self._folder / (self._inbox + SUFFIX)
            fresh = place.with_suffix(".new")
            fresh.write_bytes(receiver.getsockname()[1].to_bytes(2, "big") + self._nonce)
            fresh.replace(place)

    @property
    def stands(self) -> bool:
        """Whether others find our inbox."""
        return (self._folder / (self._inbox + SUFFIX)).exists()

    def send(self, inbox: str, signals: Sequence[Signal]) -> bool:
        """False where nobody is there to receive them any more."""
        for start in range(0, len(signals), PER_DATAGRAM):
            text = BETWEEN.join([part for signal in signals[start : start + PER_DATAGRAM] for part in signal])
            try:
                self._send(inbox, text.encode(errors="surrogateescape"))
            except BlockingIOError:  # its queue is full: it looks again once it reads so many
                return True
            except OSError as error:
                if error.errno in _NOBODY:
                    return False
                raise
        return True

    def _send(self, inbox: str, data: bytes) -> None:
        if not self._unix:
            place = (self._folder / (inbox + SUFFIX)).read_bytes()
            port, nonce = int.from_bytes(place[:2], "big"), place[2:]
            self._sender.sendto(nonce + data, ("127.0.0.1", port))
            return
        peer = self._peers.get(inbox)
        if peer is not None:
            try:
                peer.send(data)
                return
            except BlockingIOError:
                raise
            except OSError:  # it is gone, or receives elsewhere
                self._forget(inbox)
        peer = self._socket()
        try:
            peer.connect(self._address(inbox))
            peer.send(data)
        except BaseException:
            peer.close()
            raise
        while len(self._peers) >= PEERS:
            self._forget(next(iter(self._peers), ""))
        self._forget(inbox)  # another thread's
        self._peers[inbox] = peer
        if self._closed:
            self._forget(inbox)

    def _forget(self, inbox: str) -> None:
        peer = self._peers.pop(inbox, None)
        if peer is not None:
            peer.close()

    def wake(self) -> None:
        """Make our own reader look up."""
        with contextlib.suppress(OSError):
            self._send(self._inbox, WAKE)

    def read(self, data: bytes) -> list[Signal]:
        """The signals of one datagram; none for what is not from one of us."""
        if not data.startswith(self._nonce):
            return []
        parts = iter(data[len(self._nonce) :].decode(errors="surrogateescape").split(BETWEEN))
        return list(map(Signal, parts, parts))

    def close(self) -> None:
        """Send no more. Whoever reads the receiver closes it: a descriptor must not go while it is waited on."""
        self._closed = True
        self._sender.close()
        for inbox in list(self._peers):
            self._forget(inbox)

    def close_in_child(self) -> None:
        """Close this process's copies of the sockets."""
        self.close()
        if self.receiver is not None:
            self.receiver.close()

    def _address(self, inbox: str) -> str:
        return f"{self._short}/{inbox}{SUFFIX}"


def remove(folder: Path, inbox: str) -> None:
    """Remove the socket of a process that is gone."""
    with contextlib.suppress(OSError):
        (folder / (inbox + SUFFIX)).unlink(missing_ok=True)


def _short(folder: Path, extra: int) -> Path:
    """A way to ``folder`` that fits the address of a socket: itself, or a link in a folder of this user's.

    The sockets themselves always stand beside the store, so processes need not agree on the link.
    """
    if len(os.fsencode(folder)) + extra <= PATH_BYTES:
        return folder
    user = os.geteuid()  # type: ignore[attr-defined,unused-ignore]
    for base in dict.fromkeys([tempfile.gettempdir(), "/tmp"]):
        links = Path(base) / f"holdfast-{user}"
        link = links / hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
        if len(os.fsencode(link)) + extra > PATH_BYTES:
            continue
        with contextlib.suppress(OSError):
            links.mkdir(mode=0o700, exist_ok=True)
            found = links.lstat()
            if found.st_uid != user or found.st_mode & 0o077:
                continue  # somebody else could turn our links elsewhere
            with contextlib.suppress(FileExistsError):
                link.symlink_to(folder)
            return link
    raise Misuse(f"{folder} is too long for a socket and no short folder for a link to it can be made: set TMPDIR")


_posts: weakref.WeakSet[Post] = weakref.WeakSet()


def _after_fork() -> None:
    for post in list(_posts):
        post.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
