"""The live board: one greenlet serves all viewers. It runs only while there are viewers.

A few times a second the greenlet compares each session's state with the previous one. States are immutable, so a new
state is a new object. It renders each changed session once for all viewers. It reads between two steps of the owner
loop, as every query does. The owner loop does not know about it.

Every change has a number. A viewer remembers the last number that it was sent. So a slow or interrupted viewer
receives the current state, never a backlog.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import gevent
import orjson
import structlog
from gevent.event import Event

from sessiond.http.board.ledger_tail import LedgerTail
from sessiond.http.ports import Service, Watched
from sessiond.problems import Problem
from sessiond_common.clock import now_text

log = structlog.get_logger("sessiond.board")
TICK: Final = 0.2
"""Seconds between two comparisons."""
BEAT: Final = 5.0
"""Seconds between two `beat` events."""
VIEWERS: Final = 256
"""The most streams that may be open at once. Waiting callers need connections too."""

BoardEvent = tuple[str, Any]


class _SessionFeed:
    """The last rendering of one session."""

    def __init__(self) -> None:
        self.values: tuple[object, ...] = ()
        self.row = self.detail = b""
        self.tail: LedgerTail | None = None
        self.changed: dict[int, int] = {}
        """The number of each lease's last change, by the lease's fence."""


class Board:
    """The state that all viewers share. Call it from greenlets."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._feeds: dict[str, _SessionFeed] = {}
        self._order: dict[tuple[str, str], int] = {}
        """(event, session) to the number of its last change, the newest last."""
        self._count = 0
        self._viewers: set[Viewer] = set()
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self.health = {"ready": True, "detail": "ready"}

    def open(self, may_see: Callable[[str], bool], selected: str | None) -> "Viewer":
        """Return a viewer of the sessions that `may_see` allows, with `selected` in detail. The caller must close it.

        Raises:
            Problem: `board-full`, or `stopping`.
        """
        if len(self._viewers) >= VIEWERS:
            raise Problem("board-full", 503, f"{VIEWERS} streams of the board are open already; retry later")
        viewer = Viewer(self, may_see, selected)
        self._viewers.add(viewer)
        try:
            self._refresh()
        except Problem:
            viewer.close()
            raise
        if not self._greenlets:
            self._greenlets = [gevent.spawn(self._watch), gevent.spawn(self._check_health)]
        return viewer

    def leave(self, viewer: "Viewer") -> None:
        """Remove a viewer, and stop the greenlets that only this viewer needed."""
        self._viewers.discard(viewer)
        self._stop_unused_tails()
        if not self._viewers:
            gevent.killall(self._greenlets, block=False)
            self._greenlets = []

    # ---- what viewers read ---------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of the last change."""
        return self._count

    def since(self, seen: int, may_see: Callable[[str], bool], selected: str | None) -> list[BoardEvent]:
        """Return the events after change number `seen`, oldest first."""
        found: list[BoardEvent] = []
        for (event, name), number in reversed(self._order.items()):
            if number <= seen:
                break
            if may_see(name) and (event in ("session", "gone") or name == selected):
                found.append((event, self._data(event, name, seen)))
        return found[::-1]

    def snapshot(self, may_see: Callable[[str], bool], selected: str | None) -> dict[str, Any]:
        """Return the whole state. `handoffs` is None while the ledger is still being read."""
        feed = self._feeds.get(selected or "")
        tail = feed.tail if feed else None
        loaded = tail is not None and tail.loaded.is_set()
        return {
            "now": now_text(), "service": self.health, "selected": selected,
            "sessions": [orjson.Fragment(f.row) for name, f in sorted(self._feeds.items()) if may_see(name)],
            "detail": orjson.Fragment(feed.detail) if feed and feed.detail else None,
            "handoffs": tail.leases() if tail and loaded else None,
        }  # fmt: skip

    def wait_loaded(self, selected: str | None, seconds: float) -> None:
        """Wait until the session's ledger is read, for at most `seconds`."""
        feed = self._feeds.get(selected or "")
        if feed and feed.tail:
            feed.tail.loaded.wait(seconds)

    def _data(self, event: str, name: str, seen: int) -> Any:
        if event == "gone":
            return {"session": name}
        feed = self._feeds[name]
        if event != "handoffs":
            return orjson.Fragment(feed.row if event == "session" else feed.detail)
        leases = feed.tail.leases() if feed.tail else []
        return {"session": name, "handoffs": [v for v in leases if feed.changed.get(v["fence"], 0) > seen]}

    # ---- what changes it -----------------------------------------------------------------------

    def _watch(self) -> None:
        while True:
            gevent.sleep(TICK)
            before = self._count
            try:
                self._refresh()
            except Problem as problem:
                for viewer in self._viewers:
                    viewer.end(problem)
                return
            except Exception:
                log.exception("cannot refresh the board; retrying")
            if self._count != before:
                self._wake_viewers()

    def _check_health(self) -> None:
        """Check the service in a greenlet of its own, because the check blocks while Redis does not answer."""
        while True:
            ready, detail = self._service.ready()
            health = {"ready": ready, "detail": detail if not ready else "ready"}
            if health != self.health:
                self.health = health
                self._wake_viewers()
            gevent.sleep(BEAT / 2)

    def _refresh(self) -> None:
        owned = {session.name: session for session in self._service.owned()}
        for name in [n for n in self._feeds if n not in owned]:
            feed = self._feeds.pop(name)
            for event in ("session", "detail", "handoffs"):
                self._order.pop((event, name), None)
            if feed.tail:
                feed.tail.stop()
            self._change("gone", name)
        selected = {viewer.selected for viewer in self._viewers}
        for name, session in owned.items():
            self._render(session, self._feeds.setdefault(name, _SessionFeed()), name in selected)

    def _render(self, session: Watched, feed: _SessionFeed, selected: bool) -> None:
        values = session.board_values()
        same = len(values) == len(feed.values) and all(a is b for a, b in zip(values, feed.values, strict=True))
        if selected and (not same or not feed.detail):
            detail = orjson.dumps(session.detail())
            if detail != feed.detail:
                feed.detail = detail
                self._change("detail", session.name)
        elif not same:
            feed.detail = b""
        if selected and feed.tail is None:
            name = session.name
            feed.tail = LedgerTail(session, lambda fences: self._leases_changed(name, feed, fences))
        if same:
            return
        feed.values = values
        if feed.tail:
            feed.tail.wake()
        row = orjson.dumps(session.row())
        if row != feed.row:
            feed.row = row
            self._order.pop(("gone", session.name), None)
            self._change("session", session.name)

    def _leases_changed(self, name: str, feed: _SessionFeed, fences: set[int]) -> None:
        if self._feeds.get(name) is not feed or feed.tail is None:
            return
        number = self._change("handoffs", name)
        kept = {v["fence"] for v in feed.tail.leases()}
        feed.changed = {f: n for f, n in feed.changed.items() if f in kept} | dict.fromkeys(fences, number)
        self._wake_viewers()

    def _stop_unused_tails(self) -> None:
        selected = {viewer.selected for viewer in self._viewers}
        for name, feed in self._feeds.items():
            if feed.tail and name not in selected:
                feed.tail.stop()
                feed.tail, feed.changed, feed.detail = None, {}, b""
                self._order.pop(("handoffs", name), None)

    def _change(self, event: str, name: str) -> int:
        self._count += 1
        self._order.pop((event, name), None)
        self._order[event, name] = self._count
        return self._count

    def _wake_viewers(self) -> None:
        for viewer in self._viewers:
            viewer.wake.set()


class Viewer:
    """One open stream. Iterate over its (event, data), then close it."""

    def __init__(self, board: Board, may_see: Callable[[str], bool], selected: str | None) -> None:
        self._board, self._may_see, self.selected = board, may_see, selected
        self.wake = Event()
        self._problem: Problem | None = None
        self._closed = False

    def snapshot(self, seconds: float = 0.0) -> dict[str, Any]:
        """Return the state that this viewer may see. Waits up to `seconds` until the ledger is read."""
        if seconds:
            self._board.wait_loaded(self.selected, seconds)
        return self._board.snapshot(self._may_see, self.selected)

    def end(self, problem: Problem) -> None:
        """End the stream with this problem as its last event."""
        self._problem = problem
        self.wake.set()

    def hang_up(self) -> None:
        """End the stream, because the reader has disconnected. May run in the event loop."""
        self._closed = True
        self.wake.set()

    def close(self) -> None:
        """Remove this viewer from the board."""
        self._closed = True
        self._board.leave(self)

    def __iter__(self) -> Iterator[BoardEvent]:
        seen, health = self._board.count, self._board.health
        beat = time.monotonic() + BEAT
        yield "hello", self.snapshot()
        while True:
            self.wake.wait(max(0.0, beat - time.monotonic()))
            self.wake.clear()
            if self._closed:
                return
            if self._problem is not None:
                yield "problem", self._problem.body()
                return
            found = self._board.since(seen, self._may_see, self.selected)
            seen = self._board.count
            yield from found
            if health is not self._board.health or time.monotonic() >= beat:
                health, beat = self._board.health, time.monotonic() + BEAT
                yield "beat", {"now": now_text(), "service": health}
