"""A network to be broken: TCP connections to one server that can be reset, silenced, and robbed of single messages."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Wire:
    """One connection through the proxy."""

    def __init__(self, proxy: TcpProxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        self.flows = asyncio.Event()
        self.flows.set()
        self.listens = False  # it is subscribed
        self.held = b""
        self.answered = asyncio.Event()
        self.swallows = False

    async def upwards(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            self.listens = self.listens or b"SUBSCRIBE" in data or b"etcdserverpb.Watch" in data or b"LISTEN " in data
            rule = self.proxy.rule_for(data)
            if rule == "hold":
                self.held = data
                self.flows.clear()
                self.proxy.happened.set()
                continue
            self.swallows = self.swallows or rule == "swallow"
            await self.flows.wait()
            self.server.write(data)
        if not self.held:  # what is held may still be delivered after its sender hung up
            self.server.close()

    async def downwards(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            self.answered.set()
            if self.swallows:
                self.proxy.lost = data
                self.proxy.happened.set()
                break
            await self.flows.wait()
            self.client.write(data)
        self.reset()

    def reset(self) -> None:
        for writer in (self.client, self.server):
            if not writer.transport.is_closing():
                sock: socket.socket = writer.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


def every(wire: Wire) -> bool:
    return True


def standing(wire: Wire) -> bool:
    """The connections there are; new ones pass."""
    return True


def listening(wire: Wire) -> bool:
    """The connections that carry signals."""
    return wire.listens


class TcpProxy:
    """Forwards to ``port`` of this machine, from a thread of its own."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.wires: list[Wire] = []
        self.happened = threading.Event()
        """Set once an ordered loss or delay has taken place."""
        self.lost = b""
        """The last reply that was swallowed."""
        self._rules: list[tuple[bytes, str]] = []
        self._silent: Callable[[Wire], bool] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            up, server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            client.transport.abort()
            return
        wire = Wire(self, client, server)
        if self._silent is every:
            wire.flows.clear()
        self.wires.append(wire)
        with contextlib.suppress(OSError, asyncio.CancelledError):  # a cancelled one is logged as an error
            await asyncio.gather(wire.upwards(reader), wire.downwards(up))

    def rule_for(self, data: bytes) -> str:
        for rule in self._rules:
            if rule[0] in data:
                self._rules.remove(rule)
                return rule[1]
        return ""

    # -- what tests order

    def cut(self, which: Callable[[Wire], bool] = every) -> None:
        """Reset connections, both ends."""

        async def cut() -> None:
            for wire in self.wires:
                if which(wire):
                    wire.reset()

        self._run(cut())

    def silence(self, which: Callable[[Wire], bool] = every) -> None:
        """From now on nothing passes, and no end is told. ``every`` goes for new connections as well."""

        async def silence() -> None:
            self._silent = which
            for wire in self.wires:
                if which(wire):
                    wire.flows.clear()

        self._run(silence())

    def heal(self) -> None:
        """What was silent goes on, with all that was on its way."""

        async def heal() -> None:
            self._silent = None
            for wire in self.wires:
                wire.flows.set()

        self._run(heal())

    def swallow_reply_to(self, mark: bytes) -> None:
        """The next request that holds ``mark`` is done by the server; its reply is lost with the connection."""
        self.happened.clear()
        self._rules.append((mark, "swallow"))

    def hold_back(self, mark: bytes) -> None:
        """The next request that holds ``mark`` is kept, and its connection is silent from then on."""
        self.happened.clear()
        self._rules.append((mark, "hold"))

    def deliver_held(self) -> None:
        """Let the server have what was held back, each time this is called. Returns once it has answered."""

        async def deliver() -> None:
            held = [wire for wire in self.wires if wire.held]
            assert held, "nothing was held back"
            for wire in held:
                wire.answered.clear()
                wire.flows.set()
                wire.server.write(wire.held)
                await asyncio.wait_for(wire.answered.wait(), 5)

        self._run(deliver())

    def close(self) -> None:
        async def close() -> None:
            self._server.close()
            for wire in self.wires:
                wire.flows.set()
                wire.reset()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
