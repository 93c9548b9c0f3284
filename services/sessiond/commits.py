"""Committing steps: one at a time, each once, whatever Redis does meanwhile."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

import gevent
import structlog

from sessiond import metrics
from sessiond.lock.events import Entry, InvariantBroken
from sessiond.record import Command
from sessiond.store import Ahead, Away, Behind, NotHead, Step, Store

log = structlog.get_logger("sessiond.commits")

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0


class NotApplied(Exception):
    """Redis was away and is back; the step surely was not applied."""


class Commits:
    """One epoch's steps on one session."""

    def __init__(
        self, store: Store, epoch: int, version: int, restore: Callable[[], tuple[list[Command], list[Entry]]]
    ):
        self._store, self._restore = store, restore
        self.epoch, self.version = epoch, version
        self.sure_at = time.monotonic()
        """When it last was sure that this instance owns the session."""

    def sure(self) -> None:
        """Just now."""
        self.sure_at = time.monotonic()

    def push(
        self,
        commands: list[Command],
        ledger: Sequence[Entry],
        grant: tuple[str, frozenset[str]] | None,
        outage: Callable[[], None],
    ) -> bool:
        """Commits one step. Returns False when it is applied; True when it is, and Redis was away meanwhile.

        `outage` is called while Redis is away and returns when it is back. Raises NotApplied after one, InvariantBroken
        for a grant that is not the head's or a second writer, store.Deposed, and what `outage` raises.
        """
        step = Step(self.epoch, self.version, uuid.uuid4().hex, commands, list(ledger), grant)
        while True:
            try:
                began = time.monotonic()
                self._store.commit(step)
                metrics.STEP.observe(time.monotonic() - began)
                self._done()
                return False
            except Behind as error:
                if isinstance(error, Ahead):
                    raise InvariantBroken("single_writer", repr(error)) from error
                self._write_back(error.stored_version)
                step.version = self.version
            except NotHead as error:
                raise InvariantBroken("handler_fifo", repr(error)) from error
            except Away:
                outage()
                if self._store.read_meta().step != step.step_id:
                    raise NotApplied from None
                self._done()
                return True

    def _done(self) -> None:
        self.version += 1
        self.sure()

    def _write_back(self, found: int) -> None:
        """Redis lost writes: the owner's whole state is written before anything else."""
        commands, ledger = self._restore()
        log.error("Redis lost writes; written back", session=self._store.name, version=self.version)
        ledger.insert(0, ("restored", {"found": found}))
        self._store.commit(Step(self.epoch, self.version, uuid.uuid4().hex, commands, ledger, None, reset=True))
        self.version += 1

    def reachable(self) -> bool:
        """Whether Redis answers, over the connection that carries steps."""
        try:
            self._store.read_meta()
        except Away:
            return False
        return True

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Returns when Redis is back; calls `meanwhile` again and again."""
        pause = FIRST_PAUSE
        while True:
            meanwhile()
            gevent.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
            if self.reachable():
                return
