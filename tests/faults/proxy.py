"""A TCP proxy on loopback that delays, cuts and blocks what passes."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from typing import Self

BLOCK = 65536


class Proxy:
    """Forwards a free port to `target`; `delay`, `cut` and `blocked` may be changed at any time."""

    def __init__(self, target: int, seed: int = 1) -> None:
        self.port = 0
        self.delay = 0.0
        """Seconds that each block is held."""
        self.cut = 0.0
        """Chance of each block to end its connection instead of passing."""
        self.blocked = False
        """Refuse new connections and end those there are."""
        self._target = target
        self._chance = random.Random(seed)  # noqa: S311 - a repeatable course of events
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._heard = asyncio.Event()
        self._heard.set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join()

    def block(self, *, yes: bool) -> None:
        """Cut the network, or mend it."""
        self.blocked = yes
        if yes:
            self._loop.call_soon_threadsafe(self._abort_all)

    def silence(self, *, yes: bool) -> None:
        """Let nothing through, and tell nobody: connections stay open, as when a cable is pulled."""
        self._loop.call_soon_threadsafe(self._heard.clear if yes else self._heard.set)

    def _abort_all(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    def _end(self) -> None:
        self._abort_all()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def _serve(self) -> None:
        async def main() -> None:
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            async with server:
                await server.serve_forever()

        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(main())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.blocked:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        with suppress(asyncio.CancelledError):
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        self._open -= {writer, back}

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(BLOCK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._heard.wait()
                if self.cut and self._chance.random() < self.cut:
                    break
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # the other side has gone
        finally:
            sink.transport.abort()
