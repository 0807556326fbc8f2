"""kazoo, made lean: the same client, with a handler and a connection of ours.

Its stock handler passes every reply through two more threads, and polls before each read and write. Nothing that we do
when a reply or an event comes ever blocks, so here all of it is done on the connection's own thread.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

from .connection import Buffered, Connection
from .target import Target

# kazoo has no types
_client: Any = import_module("kazoo.client")
_retry: Any = import_module("kazoo.retry")
_serialization: Any = import_module("kazoo.protocol.serialization")
_threading: Any = import_module("kazoo.handlers.threading")

CLOSED_STATES = _client.CLOSED_STATES

log = logging.getLogger("holdfast.zookeeper")

CONNECT_S = 2.0
"""How long one host has to accept a connection: the next one is tried while the session lives."""

_HAS_POLL = hasattr(select, "poll")  # Windows has none


def _with_tls(sock: socket.socket, hostname: str, options: dict[str, Any]) -> ssl.SSLSocket:
    try:
        context = ssl.create_default_context(cafile=options["ca"])
        context.check_hostname = options["check_hostname"]
        context.verify_mode = ssl.CERT_REQUIRED if options["verify_certs"] else ssl.CERT_NONE
        if options["certfile"]:
            context.load_cert_chain(options["certfile"], options["keyfile"], options["keyfile_password"])
        return context.wrap_socket(sock, server_hostname=hostname)
    except BaseException:
        sock.close()
        raise


class _Inline:
    """A queue of work that is done as it is put in."""

    def put(self, work: Callable[[], None]) -> None:
        work()


class _Handler(_threading.SequentialThreadingHandler):  # type: ignore[misc]
    """One thread, the connection's."""

    queue_impl: ClassVar[Any] = _Inline
    thread: threading.Thread | None = None
    last_error = ""

    def start(self) -> None:
        self._running = True

    def stop(self) -> None:
        self._running = False

    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> threading.Thread:
        self.thread = threading.Thread(target=func, args=args, kwargs=kwargs, name="holdfast-zookeeper", daemon=True)
        self.thread.start()
        return self.thread

    def dispatch_callback(self, callback: Any) -> None:
        try:
            callback.func(*callback.args)
        except Exception:
            log.exception("a watcher failed")

    def create_connection(self, address: Any, hostname: str = "", use_ssl: bool = False, **options: Any) -> Any:
        try:
            sock = socket.create_connection(address, CONNECT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if use_ssl:
                return _with_tls(sock, hostname, options)
        except OSError as error:
            self.last_error = str(error)
            raise
        return Buffered(sock) if _HAS_POLL else sock

    def select(self, reads: Any, writes: Any, excepts: Any, timeout: float | None = None) -> Any:
        if not _HAS_POLL:
            base: Any = super()
            return base.select(reads, writes, excepts, timeout)
        for one in reads:
            if type(one) is Buffered and one.pending():
                return [one], [], []
        poller, of = select.poll(), dict[int, Any]()
        for some, event in ((reads, select.POLLIN), (writes, select.POLLOUT)):
            for one in some:
                poller.register(one, event)
                of[one.fileno()] = one
        ready = [of[fd] for fd, _ in poller.poll(None if timeout is None else max(0.0, timeout * 1000))]
        return [one for one in reads if one in ready], [one for one in writes if one in ready], []


class _Client(_client.KazooClient):  # type: ignore[misc]
    def _session_callback(self, state: Any) -> None:
        self._connection.shut()  # before all that is pending there is told of it
        base: Any = super()
        base._session_callback(state)


class _Hushed(logging.Filter):
    """kazoo logs every request, also those that carry a password; and warns of each try, where a lease warns once."""

    secret = (_serialization.Auth, _serialization.SASL, _serialization.Connect)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING:
            record.levelno, record.levelname = logging.INFO, "INFO"
        args = record.args if isinstance(record.args, tuple) else ()
        return _log.isEnabledFor(record.levelno) and not any(isinstance(arg, self.secret) for arg in args)


_log = logging.getLogger("holdfast.zookeeper.kazoo")
_log.addFilter(_Hushed())


def new_client(target: Target) -> Any:
    """A client that is not connected yet. Lost connections are made again at once and then every second or so."""
    client = _Client(
        hosts=target.hosts + target.chroot,
        timeout=target.session_timeout_s,
        handler=_Handler(),
        connection_retry=_retry.KazooRetry(max_tries=-1, delay=0.02, max_delay=1.0),
        logger=_log,
        **target.options,
    )
    sasl = client._connection.sasl_options
    client._connection = Connection(client, client._conn_retry.copy(), logger=_log, sasl_options=sasl)
    client._connection.silence_s = target.silence_s
    return client


def kick(client: Any) -> None:
    """Break a connection that says nothing, so that another one is made."""
    sock = client._connection._socket
    plain = sock.sock if type(sock) is Buffered else sock
    if plain is not None:
        with contextlib.suppress(OSError):  # broken already
            socket.socket.shutdown(plain, socket.SHUT_RDWR)  # not TLS's own, which would wait for an answer


def abandon(client: Any) -> None:
    """Close a forked child's copies of the sockets, which says nothing to the server."""
    connection = client._connection
    for sock in (connection._socket, connection._read_sock, connection._write_sock):
        if sock is not None:
            sock.close()
