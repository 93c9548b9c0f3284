"""Reads what the owner loops wrote into the ledgers, and counts what is against the rules.

It is no part of a grant: it reads the ledger as anybody can, through verify, which shares no code with the machines.
One greenlet for all sessions; a session is read only when it has made steps.
"""

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import gevent
import structlog

from sessiond import metrics
from sessiond.store.connection import Away, Broken
from sessiond.store.store import Store
from sessiond.verify import Reader, Unreadable

log = structlog.get_logger("sessiond.audit")

PAUSE: Final = 1.0
PAGE: Final = 200
"""Entries between two looks at the other greenlets."""


class Audit:
    """One session's ledger, followed from where it ended when this is made. Raises store errors."""

    def __init__(self, name: str, store: Store, version: Callable[[], int]) -> None:
        self._name, self._store, self._version = name, store, version
        self._reader = Reader()
        last = store.ledger_before(None, 1)
        self._after: str | None = last[0]["id"] if last else None
        self._read: int | None = None

    def read_on(self) -> None:
        """Reads and counts what is new. Raises store errors."""
        version = self._version()
        while version != self._read:
            page = self._store.ledger(self._after, PAGE)
            for entry in page:
                self._one(entry)
            if page:
                self._after = page[-1]["id"]
            if len(page) < PAGE:
                # The ledger ends here, and only ever with a whole step.
                self._reader.step_over()
                self._read = version
            self._tell()
            gevent.sleep(0)

    def _one(self, entry: dict[str, object]) -> None:
        try:
            self._reader.read(entry)
        except Unreadable as error:
            # The next snapshot says again how everything stands.
            log.error("a ledger entry cannot be read", session=self._name, entry=entry["id"], error=repr(error))
            self._tell()
            self._reader = Reader()
        metrics.CHECKED.inc()

    def _tell(self) -> None:
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
    """For ever, in a greenlet of its own."""
    while True:
        gevent.sleep(PAUSE)
        for session in sessions():
            try:
                session.audit.read_on()
            except (Away, Broken) as error:
                log.warning("the ledger cannot be read", error=str(error))
            except Exception:  # one session's ledger is not the others'
                log.exception("the ledger cannot be audited")
