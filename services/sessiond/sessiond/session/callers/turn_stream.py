"""The stream of one turn's events, from the owner loop to the holder's HTTP response.

A stream never blocks the loop. A slow reader loses `agent` events and gets their number; it never loses the `result`.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from gevent.event import Event

BEAT_SECONDS: Final = 10.0
STREAM_LIMIT: Final = 2_000
"""How many `agent` events are kept for a slow reader. Beyond that, the oldest are dropped."""
STREAM_BYTES: Final = 8 * 2**20
"""The same limit in bytes of the agent's lines. The newest line is always kept."""

StreamItem = tuple[str, Any]


class TurnStream:
    """A turn's events for its holder: ("agent", line), ("gap", {"lost": n}), ("beat", None), ("result", {...})."""

    def __init__(self, turn: str) -> None:
        self.turn = turn
        self._lines: deque[tuple[dict[str, Any], int]] = deque()
        self._bytes = 0
        self._lost = 0
        self._result: dict[str, Any] | None = None
        self._filled = Event()
        self._closed = self._cut = False

    @property
    def finished(self) -> bool:
        """Whether the turn's result is in the stream."""
        return self._result is not None

    def feed(self, line: dict[str, Any] | None, size: int) -> None:
        """Add one of the agent's own lines, of `size` bytes. None counts as a lost line. Never blocks."""
        if self._closed:
            return
        if line is None:
            self._lost += 1
            self._filled.set()
            return
        while self._lines and (len(self._lines) >= STREAM_LIMIT or self._bytes + size > STREAM_BYTES):
            self._pop_line()
            self._lost += 1
        self._lines.append((line, size))
        self._bytes += size
        self._filled.set()

    def _pop_line(self) -> dict[str, Any]:
        line, size = self._lines.popleft()
        self._bytes -= size
        return line

    def finish(self, result: dict[str, Any]) -> None:
        """Add the turn's one result."""
        self._result = result
        self._filled.set()

    def cut(self) -> None:
        """End the stream without a result. Its reader must ask for the turn's outcome."""
        self._cut = True
        self._filled.set()

    def close(self) -> None:
        """Stop keeping lines, because the reader went away. The turn goes on."""
        self._closed = True
        self._lines.clear()
        self._bytes = 0

    def __iter__(self) -> Iterator[StreamItem]:
        while True:
            if not self._filled.wait(BEAT_SECONDS):
                yield ("beat", None)
                continue
            self._filled.clear()
            # A yield to a slow reader takes long, so more lines may be lost during it.
            while self._lines or self._lost:
                if self._lost:
                    lost, self._lost = self._lost, 0
                    yield ("gap", {"lost": lost})
                else:
                    yield ("agent", self._pop_line())
            if self._result is not None:
                yield ("result", self._result)
                return
            if self._cut:
                return
