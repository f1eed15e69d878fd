"""What changes, told to every open page: server-sent events, one stream for each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

BEHIND = 2000
"""Events that a page may be behind before its stream is closed; it then connects anew and gets the whole state."""
ALIVE = 15.0
"""Seconds after which a silent stream sends a comment, so that a broken connection is noticed."""


class Events:
    """The streams of one server. Used in the thread of its event loop.

    Args:
        state: makes the first event of a stream.
    """

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        self._state = state
        self._streams: set[asyncio.Queue[str | None]] = set()

    def publish(self, event: str, data: Any) -> None:
        """Tells every page."""
        text = _event(event, data)
        for stream in list(self._streams):
            if stream.qsize() >= BEHIND:
                self._streams.discard(stream)
                stream.put_nowait(None)
            else:
                stream.put_nowait(text)

    def close(self) -> None:
        """Ends all streams."""
        for stream in self._streams:
            stream.put_nowait(None)
        self._streams.clear()

    async def stream(self) -> AsyncIterator[str]:
        """The events of one page, from now on."""
        mine: asyncio.Queue[str | None] = asyncio.Queue()
        mine.put_nowait(_event("state", self._state()))
        self._streams.add(mine)
        try:
            while True:
                try:
                    text = await asyncio.wait_for(mine.get(), ALIVE)
                except TimeoutError:
                    text = ": alive\n\n"
                if text is None:
                    return
                yield text
        finally:
            self._streams.discard(mine)


def _event(event: str, data: Any) -> str:
    return f"event: {event}\ndata: {json.dumps(data, ensure_ascii=True)}\n\n"
