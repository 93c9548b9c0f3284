"""A session's last handoffs, read from its ledger by one greenlet for however many look at them.

First backwards in small pages until enough grants are found, then forwards whenever it is told that something happened.
Never in the owner loop's greenlet; a page is small because decoding it holds every other greenlet.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import gevent
import structlog
from gevent.event import Event

from sessiond.http.board.lease_history import LIMIT, Handoffs
from sessiond.problems import Problem

log = structlog.get_logger("sessiond.following")
PAGE: Final = 100
PAGES: Final = 60
"""A handoff has about a dozen entries; where the ledger has far more between two, the older ones are not shown."""
AGAIN: Final = 1.0


class Ledger(Protocol):
    """What is read."""

    name: str

    def keys(self) -> dict[str, str | None]: ...
    def ledger_after(self, after: str | None, count: int) -> list[dict[str, Any]]: ...
    def ledger_before(self, before: str | None, count: int) -> list[dict[str, Any]]: ...


class Follower:
    """One session's. `changed` is told the fences of leases that changed."""

    def __init__(self, ledger: Ledger, changed: Callable[[set[int]], None]) -> None:
        self._ledger, self._changed = ledger, changed
        self._handoffs = Handoffs()
        self._last: str | None = None
        self._wake = Event()
        self.loaded = Event()
        self._greenlet = gevent.spawn(self._run)

    def wake(self) -> None:
        """The session changed: its ledger may have grown."""
        self._wake.set()

    def leases(self) -> list[dict[str, Any]]:
        """The leases as they stand, oldest first."""
        return self._handoffs.leases()

    def stop(self) -> None:
        """Ends the greenlet."""
        self._greenlet.kill(block=False)

    def _run(self) -> None:
        while True:
            try:
                if not self.loaded.is_set():
                    self._load()
                self._forwards()
            except Problem:
                gevent.sleep(AGAIN)  # Redis is away: what is known stays
                continue
            except Exception:
                log.exception("a ledger cannot be followed", session=self._ledger.name)
                gevent.sleep(AGAIN)
                continue
            self._wake.wait()
            self._wake.clear()

    def _load(self) -> None:
        found: list[dict[str, Any]] = []
        grants = 0
        for _ in range(PAGES):
            page = self._ledger.ledger_before(found[-1]["id"] if found else None, PAGE)
            found += page
            grants += sum(e["event"] == "granted" for e in page)
            if len(page) < PAGE or grants > LIMIT:
                break
            gevent.sleep(0)
        self._handoffs = Handoffs()
        self._handoffs.name(self._ledger.keys())
        changed = self._handoffs.read(reversed(found))
        self._last = found[0]["id"] if found else None
        self.loaded.set()
        self._changed(changed)

    def _forwards(self) -> None:
        while True:
            page = self._ledger.ledger_after(self._last, PAGE)
            if page:
                self._last = page[-1]["id"]
                if changed := self._handoffs.read(page):
                    self._changed(changed)
            if len(page) < PAGE:
                return
            gevent.sleep(0)
