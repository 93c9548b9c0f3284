"""The last leases of a session, kept up to date from its ledger by one greenlet for all viewers.

It first reads backwards until it has enough grants, then forwards each time the session changes. It never runs in the
owner loop's greenlet. Pages are small because decoding one blocks every other greenlet.
"""

from collections.abc import Callable
from typing import Any, Final

import gevent
import structlog
from gevent.event import Event

from sessiond.http.board.lease_history import LIMIT, LeaseHistory
from sessiond.http.ports import Ledger
from sessiond.problems import Problem

log = structlog.get_logger("sessiond.following")
PAGE: Final = 100
PAGES: Final = 60
"""One lease has about a dozen entries. If there are many more between two grants, older leases are not shown."""
RETRY: Final = 1.0
"""Seconds until the next attempt after an error."""


class LedgerTail:
    """The last leases of one session. Calls `changed` with the fences of leases that changed."""

    def __init__(self, ledger: Ledger, changed: Callable[[set[int]], None]) -> None:
        self._ledger, self._changed = ledger, changed
        self._history = LeaseHistory()
        self._last: str | None = None
        self._wake = Event()
        self.loaded = Event()
        self._greenlet = gevent.spawn(self._run)

    def wake(self) -> None:
        """Read the new entries, because the session changed."""
        self._wake.set()

    def leases(self) -> list[dict[str, Any]]:
        """The leases known now, oldest first."""
        return self._history.leases()

    def stop(self) -> None:
        """End the greenlet."""
        self._greenlet.kill(block=False)

    def _run(self) -> None:
        while True:
            try:
                if not self.loaded.is_set():
                    self._load()
                self._read_on()
            except Problem:
                gevent.sleep(RETRY)  # Redis is away; keep the leases read so far
                continue
            except Exception:
                log.exception("cannot read the ledger; retrying", session=self._ledger.name)
                gevent.sleep(RETRY)
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
        self._history = LeaseHistory()
        self._history.add_keys(self._ledger.keys())
        changed = self._history.read(reversed(found))
        self._last = found[0]["id"] if found else None
        self.loaded.set()
        self._changed(changed)

    def _read_on(self) -> None:
        while True:
            page = self._ledger.ledger_after(self._last, PAGE)
            if page:
                self._last = page[-1]["id"]
                if changed := self._history.read(page):
                    self._changed(changed)
            if len(page) < PAGE:
                return
            gevent.sleep(0)
