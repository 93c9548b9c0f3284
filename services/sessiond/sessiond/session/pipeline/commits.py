"""The commit stage: it writes one step at a time to Redis, each at most once, even through outages."""

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final

import gevent
import structlog

from sessiond import metrics
from sessiond.lock.events import Entry, InvariantBroken
from sessiond.session.pipeline.step import Step
from sessiond.store.codec import RedisCommand
from sessiond.store.connection import RedisUnavailable
from sessiond.store.store import Ahead, Behind, NotHead, Store, StoreStep

log = structlog.get_logger("sessiond.commits")

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0


class NotApplied(Exception):
    """Redis was away and is back, and the step was certainly not applied."""


class Commits:
    """The steps of one session in one epoch."""

    def __init__(
        self, store: Store, epoch: int, version: int, restore: Callable[[], tuple[list[RedisCommand], list[Entry]]]
    ) -> None:
        """`restore` returns the commands and ledger entries that write the owner's whole state."""
        self._store, self._restore = store, restore
        self.epoch, self.version = epoch, version
        self._restoring: StoreStep | None = None
        """A step that writes everything back, and that may or may not have been applied."""
        self._confirmed_at = time.monotonic()

    def confirm(self, asked: float) -> None:
        """Record that a call sent at `asked` confirmed our ownership and advanced the beat.

        The time of sending counts, because an answer may be old when it is read. Until `owner_ttl` after that time, no
        other instance can own the session.
        """
        self._confirmed_at = max(self._confirmed_at, asked)

    @property
    def unconfirmed(self) -> float:
        """Seconds since the moment at which the ownership was last confirmed."""
        return time.monotonic() - self._confirmed_at

    def push(self, step: Step, on_outage: Callable[[], None]) -> bool:
        """Commit a step. Returns whether Redis was away during it.

        `on_outage` is called while Redis is away and returns when it is back.

        Raises:
            NotApplied: Redis was away, and the step was not applied.
            InvariantBroken: the grant is not the head's, or a second writer changed the session.
            Deposed: another instance owns the session.
            Exception: whatever `on_outage` raises.
        """
        sent = StoreStep(
            self.epoch, self.version, uuid.uuid4().hex, step.commands, list(step.plan.ledger), step.grant
        )  # fmt: skip
        was_away, began = False, time.monotonic()
        while True:
            try:
                if not was_away:
                    self._apply(sent)
                elif self._store.read_meta().step == sent.step_id:
                    self._store.confirm(sent)
                else:
                    raise NotApplied
            except RedisUnavailable:
                was_away = True
                on_outage()
            else:
                self._applied(began)
                return was_away

    def _apply(self, step: StoreStep) -> None:
        began = time.monotonic()
        try:
            self._store.commit(step)
        except Ahead as error:
            raise InvariantBroken("single_writer", repr(error)) from error
        except NotHead as error:
            raise InvariantBroken("handler_fifo", repr(error)) from error
        except Behind:
            self._write_back()
            step.version = self.version
            self._store.commit(step)
        metrics.STEP.observe(time.monotonic() - began)

    def _applied(self, asked: float) -> None:
        self.version += 1
        self.confirm(asked)

    def _write_back(self) -> None:
        """If Redis lost writes, write the owner's whole state before anything else. Raises RedisUnavailable."""
        meta, asked = self._store.read_meta(), self._confirmed_at
        if self._restoring is None or meta.step != self._restoring.step_id:
            if (meta.epoch, meta.version) >= (self.epoch, self.version):
                return
            commands, ledger = self._restore()
            log.error("Redis lost writes; written back", session=self._store.name, version=self.version)
            ledger.insert(0, ("restored", {"found": meta.version}))
            self._restoring = StoreStep(self.epoch, self.version, uuid.uuid4().hex, commands, ledger, None, reset=True)
            asked = time.monotonic()
            self._store.commit(self._restoring)
        self._restoring = None
        self._applied(asked)

    def reachable(self) -> bool:
        """Return whether Redis accepts steps, over the connection that sends them. Write back what Redis lost."""
        try:
            self._write_back()
            self._store.writable()
        except RedisUnavailable:
            return False
        return True

    def retries(self) -> Iterator[None]:
        """Yield before each try to reach Redis, and end when it is back."""
        pause = FIRST_PAUSE
        while True:
            yield
            gevent.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
            if self.reachable():
                return
