"""Committing steps: one at a time, each once, whatever Redis does meanwhile."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

import gevent
import structlog

from sessiond import metrics
from sessiond.lock.events import Entry, InvariantBroken
from sessiond.store.codec import Command
from sessiond.store.store import Ahead, Away, Behind, NotHead, Step, Store

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
        self._mending: Step | None = None
        """A step that writes everything back, of which is not known whether it was applied."""
        self.sure_at = time.monotonic()
        """Until `owner_ttl` after this moment nobody else can own the session."""

    @property
    def session(self) -> str:
        """The session's name."""
        return self._store.name

    def sure(self, asked: float) -> None:
        """A call that was sent at `asked` found the session ours and moved its beat. An answer may be old when read."""
        self.sure_at = max(self.sure_at, asked)

    @property
    def unsure(self) -> float:
        """Seconds since `sure_at`."""
        return time.monotonic() - self.sure_at

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
        was_away, began = False, time.monotonic()
        while True:
            try:
                if not was_away:
                    self._apply(step)
                elif self._store.read_meta().step == step.step_id:
                    self._store.confirm(step)
                else:
                    raise NotApplied
            except Away:
                was_away = True
                outage()
            else:
                self._done(began)
                return was_away

    def _apply(self, step: Step) -> None:
        began = time.monotonic()
        try:
            self._store.commit(step)
        except Ahead as error:
            raise InvariantBroken("single_writer", repr(error)) from error
        except NotHead as error:
            raise InvariantBroken("handler_fifo", repr(error)) from error
        except Behind:
            self._mend()
            step.version = self.version
            self._store.commit(step)
        metrics.STEP.observe(time.monotonic() - began)

    def _done(self, began: float) -> None:
        self.version += 1
        self.sure(began)

    def _mend(self) -> None:
        """If Redis lost writes, the owner's whole state is written before anything else. Raises Away."""
        meta, asked = self._store.read_meta(), self.sure_at
        if self._mending is None or meta.step != self._mending.step_id:
            if (meta.epoch, meta.version) >= (self.epoch, self.version):
                return
            commands, ledger = self._restore()
            log.error("Redis lost writes; written back", session=self.session, version=self.version)
            ledger.insert(0, ("restored", {"found": meta.version}))
            self._mending = Step(self.epoch, self.version, uuid.uuid4().hex, commands, ledger, None, reset=True)
            asked = time.monotonic()
            self._store.commit(self._mending)
        self._mending = None
        self._done(asked)

    def reachable(self) -> bool:
        """Whether Redis takes steps, over the connection that carries them; what it lost is written back."""
        try:
            self._mend()
            self._store.writable()
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
