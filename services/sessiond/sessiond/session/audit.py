"""Reads the ledgers that the owner loops write, and counts violations of the rules.

No grant depends on the audit: it reads the ledger like any client, through `verify`, which shares no code with the
machines. One greenlet serves all sessions; it reads a session only after new steps.
"""

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import gevent
import structlog

from sessiond import metrics
from sessiond.store.connection import Broken, RedisUnavailable
from sessiond.store.store import Store
from sessiond.verify import Reader, Unreadable

log = structlog.get_logger("sessiond.audit")

PAUSE: Final = 1.0
PAGE: Final = 200
"""Entries that are read before other greenlets run."""


class Audit:
    """Follows one session's ledger, from its end at the time of construction. Raises store errors."""

    def __init__(self, name: str, store: Store, version: Callable[[], int]) -> None:
        self._name, self._store, self._version = name, store, version
        self._reader = Reader()
        last = store.ledger_before(None, 1)
        self._after: str | None = last[0]["id"] if last else None
        self._read_version: int | None = None

    def read_on(self) -> None:
        """Read and count the new entries. Raises store errors."""
        version = self._version()
        while version != self._read_version:
            page = self._store.ledger(self._after, PAGE)
            for entry in page:
                self._read(entry)
            if page:
                self._after = page[-1]["id"]
            if len(page) < PAGE:
                # The ledger ends here, and it always ends with a whole step.
                self._reader.step_over()
                self._read_version = version
            self._report()
            gevent.sleep(0)

    def _read(self, entry: dict[str, object]) -> None:
        try:
            self._reader.read(entry)
        except Unreadable as error:
            # A new reader starts at the next snapshot, which has the whole state.
            log.error("a ledger entry cannot be read", session=self._name, entry=entry["id"], error=repr(error))
            self._report()
            self._reader = Reader()
        metrics.CHECKED.inc()

    def _report(self) -> None:
        found = self._reader.take()
        metrics.INVERSIONS.inc(found.inversions)
        metrics.MISORDERS.inc(found.misorders)
        for invariant, entry, text in found.violations:
            metrics.VIOLATIONS.labels(invariant).inc()
            log.error("the ledger breaks a rule", session=self._name, invariant=invariant, entry=entry, detail=text)


class Audited(Protocol):
    """A session with an audit."""

    @property
    def audit(self) -> Audit: ...


def follow(sessions: Callable[[], Iterable[Audited]]) -> None:
    """Read the ledgers of these sessions again and again. Runs in a greenlet of its own and never returns."""
    while True:
        gevent.sleep(PAUSE)
        for session in sessions():
            try:
                session.audit.read_on()
            except (RedisUnavailable, Broken) as error:
                log.warning("the ledger cannot be read", error=str(error))
            except Exception:  # the other sessions' ledgers are still read
                log.exception("the ledger cannot be audited")
