"""The live board: for any number of viewers at the cost of one, and none while nobody looks.

A greenlet looks a few times a second at which sessions' states were replaced (they are values: another one is another
object) and renders those once for all viewers. It reads between two steps, as every look does; owner loops do not know
of it. A viewer remembers the number of the last change that it was sent: one that is slow, or was away, gets what is
the case now, never a backlog.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import gevent
import orjson
import structlog
from gevent.event import Event

from sessiond.http.board.ledger_tail import Follower, Ledger
from sessiond.problems import Problem
from sessiond_common.clock import now_text

log = structlog.get_logger("sessiond.board")
TICK: Final = 0.2
BEAT: Final = 5.0
VIEWERS: Final = 256
"""Streams at once: parked waits need connections too."""

Sent = tuple[str, Any]


class Watched(Ledger, Protocol):
    """A session that this instance owns."""

    def moment(self) -> tuple[object, ...]: ...
    def row(self) -> dict[str, Any]: ...
    def detail(self) -> dict[str, Any]: ...


class Service(Protocol):
    """All of them. `owned` raises Problem when the service stops."""

    def owned(self) -> Sequence[Watched]: ...
    def ready(self) -> tuple[bool, str]: ...


class _Feed:
    """One session as it was last rendered."""

    def __init__(self) -> None:
        self.moment: tuple[object, ...] = ()
        self.row = self.detail = b""
        self.follower: Follower | None = None
        self.changed: dict[int, int] = {}
        """By a lease's fence: the number of its last change."""


class Board:
    """What the viewers share. Use from greenlets."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._feeds: dict[str, _Feed] = {}
        self._order: dict[tuple[str, str], int] = {}
        """(event, session) to the number of its last change, the newest last."""
        self._count = 0
        self._viewers: set[Viewer] = set()
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self.health = {"ready": True, "detail": "ready"}

    def open(self, may_see: Callable[[str], bool], selected: str | None) -> "Viewer":
        """A viewer of the sessions that it may see, and of one in detail. Close it. Raises Problem."""
        if len(self._viewers) >= VIEWERS:
            raise Problem("board-full", 503, f"{VIEWERS} streams of the board are open")
        viewer = Viewer(self, may_see, selected)
        self._viewers.add(viewer)
        try:
            self._refresh()
        except Problem:
            viewer.close()
            raise
        if not self._greenlets:
            self._greenlets = [gevent.spawn(self._watch), gevent.spawn(self._check)]
        return viewer

    def leave(self, viewer: "Viewer") -> None:
        """It looks no more."""
        self._viewers.discard(viewer)
        self._unfollow()
        if not self._viewers:
            gevent.killall(self._greenlets, block=False)
            self._greenlets = []

    # ---- what the viewers read -----------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of the last change."""
        return self._count

    def since(self, seen: int, may_see: Callable[[str], bool], selected: str | None) -> list[Sent]:
        """The events after the change `seen`, oldest first."""
        found: list[Sent] = []
        for (event, name), number in reversed(self._order.items()):
            if number <= seen:
                break
            if may_see(name) and (event in ("session", "gone") or name == selected):
                found.append((event, self._data(event, name, seen)))
        return found[::-1]

    def picture(self, may_see: Callable[[str], bool], selected: str | None) -> dict[str, Any]:
        """All of it. `handoffs` is None while they are being read."""
        feed = self._feeds.get(selected or "")
        follower = feed.follower if feed else None
        loaded = follower is not None and follower.loaded.is_set()
        return {
            "now": now_text(), "service": self.health, "selected": selected,
            "sessions": [orjson.Fragment(f.row) for name, f in sorted(self._feeds.items()) if may_see(name)],
            "detail": orjson.Fragment(feed.detail) if feed and feed.detail else None,
            "handoffs": follower.leases() if follower and loaded else None,
        }  # fmt: skip

    def loaded(self, selected: str | None, seconds: float) -> None:
        """Waits at most so long for the handoffs of the session."""
        feed = self._feeds.get(selected or "")
        if feed and feed.follower:
            feed.follower.loaded.wait(seconds)

    def _data(self, event: str, name: str, seen: int) -> Any:
        if event == "gone":
            return {"session": name}
        feed = self._feeds[name]
        if event != "handoffs":
            return orjson.Fragment(feed.row if event == "session" else feed.detail)
        leases = feed.follower.leases() if feed.follower else []
        return {"session": name, "handoffs": [v for v in leases if feed.changed.get(v["fence"], 0) > seen]}

    # ---- what changes it ------------------------------------------------------------------------

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
                log.exception("the board cannot be refreshed")
            if self._count != before:
                self._wake()

    def _check(self) -> None:
        """Whether the service is ready; asking may take as long as Redis does not answer."""
        while True:
            ready, detail = self._service.ready()
            health = {"ready": ready, "detail": detail if not ready else "ready"}
            if health != self.health:
                self.health = health
                self._wake()
            gevent.sleep(BEAT / 2)

    def _refresh(self) -> None:
        owned = {session.name: session for session in self._service.owned()}
        for name in [n for n in self._feeds if n not in owned]:
            feed = self._feeds.pop(name)
            for event in ("session", "detail", "handoffs"):
                self._order.pop((event, name), None)
            if feed.follower:
                feed.follower.stop()
            self._change("gone", name)
        selected = {viewer.selected for viewer in self._viewers}
        for name, session in owned.items():
            self._look(session, self._feeds.setdefault(name, _Feed()), name in selected)

    def _look(self, session: Watched, feed: _Feed, selected: bool) -> None:
        moment = session.moment()
        same = len(moment) == len(feed.moment) and all(a is b for a, b in zip(moment, feed.moment, strict=True))
        if selected and (not same or not feed.detail):
            detail = orjson.dumps(session.detail())
            if detail != feed.detail:
                feed.detail = detail
                self._change("detail", session.name)
        elif not same:
            feed.detail = b""
        if selected and feed.follower is None:
            name = session.name
            feed.follower = Follower(session, lambda fences: self._leases(name, feed, fences))
        if same:
            return
        feed.moment = moment
        if feed.follower:
            feed.follower.wake()
        row = orjson.dumps(session.row())
        if row != feed.row:
            feed.row = row
            self._order.pop(("gone", session.name), None)
            self._change("session", session.name)

    def _leases(self, name: str, feed: _Feed, fences: set[int]) -> None:
        if self._feeds.get(name) is not feed or feed.follower is None:
            return
        number = self._change("handoffs", name)
        kept = {v["fence"] for v in feed.follower.leases()}
        feed.changed = {f: n for f, n in feed.changed.items() if f in kept} | dict.fromkeys(fences, number)
        self._wake()

    def _unfollow(self) -> None:
        selected = {viewer.selected for viewer in self._viewers}
        for name, feed in self._feeds.items():
            if feed.follower and name not in selected:
                feed.follower.stop()
                feed.follower, feed.changed, feed.detail = None, {}, b""
                self._order.pop(("handoffs", name), None)

    def _change(self, event: str, name: str) -> int:
        self._count += 1
        self._order.pop((event, name), None)
        self._order[event, name] = self._count
        return self._count

    def _wake(self) -> None:
        for viewer in self._viewers:
            viewer.wake.set()


class Viewer:
    """One open stream: iterate it for (event, data), close it."""

    def __init__(self, board: Board, may_see: Callable[[str], bool], selected: str | None) -> None:
        self._board, self._may_see, self.selected = board, may_see, selected
        self.wake = Event()
        self._problem: Problem | None = None
        self._over = False

    def picture(self, seconds: float = 0.0) -> dict[str, Any]:
        """All that it may see, after at most `seconds` for what must be read first."""
        if seconds:
            self._board.loaded(self.selected, seconds)
        return self._board.picture(self._may_see, self.selected)

    def end(self, problem: Problem) -> None:
        """The stream is told why, and ends."""
        self._problem = problem
        self.wake.set()

    def hang_up(self) -> None:
        """Nobody reads it any more; may be called from the hub."""
        self._over = True
        self.wake.set()

    def close(self) -> None:
        """Gives up its place."""
        self._over = True
        self._board.leave(self)

    def __iter__(self) -> Iterator[Sent]:
        seen, health = self._board.count, self._board.health
        beat = time.monotonic() + BEAT
        yield "hello", self.picture()
        while True:
            self.wake.wait(max(0.0, beat - time.monotonic()))
            self.wake.clear()
            if self._over:
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
