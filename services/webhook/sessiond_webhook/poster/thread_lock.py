"""The lock of a thread: the right of one poster's run to post there, and the changes that this run may make.

Each change is one transaction that also watches the lock. So a run that stalled until another run took the lock cannot
change anything. GitHub does not know this lock. The run therefore renews it directly before each write to GitHub, and
its time to live is much longer than the deadline of a call.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

import structlog

from sessiond_common.clock import now_text
from sessiond_common.heartbeat import Heartbeat
from sessiond_webhook.demands import codec, machine
from sessiond_webhook.demands.machine import Demand, DemandState, Note
from sessiond_webhook.demands.outbox_queue import Posts, stage_forget, thread_lock_key, wait_key
from sessiond_webhook.demands.store import demand_key, posts_key, text, texts
from sessiond_webhook.poster import notes

log = structlog.get_logger("webhook.claims")
LOCK_TTL: Final = 60
_T = TypeVar("_T")


class ThreadLockLost(Exception):
    """Another run may hold the lock now. This run must not change anything any more."""


class RecordChanged(Exception):
    """The record has changed, so the run must not write what it has prepared."""


def try_acquire(posts: Posts, thread: str, ttl: int = LOCK_TTL) -> "ThreadLock | None":
    """Lock the thread for `ttl` seconds. Returns None while another run holds it."""
    lock = ThreadLock(posts, thread, uuid.uuid4().hex, ttl)
    return lock if posts.redis.set(thread_lock_key(thread), lock.holder, nx=True, ex=ttl) else None


# Not redis.lock.Lock: its own scripts cannot check the lock and change a record in one transaction.
class ThreadLock:
    """One run's right to post in a thread. Every method that changes something raises ThreadLockLost."""

    def __init__(self, posts: Posts, thread: str, holder: str, ttl: int) -> None:
        self.posts, self.thread, self.holder, self.ttl = posts, thread, holder, ttl

    @contextmanager
    def held(self) -> Iterator[None]:
        """Renew the lock inside the `with` block, in a thread, every third of `ttl`. Release it at the end."""
        heartbeat = Heartbeat(f"thread-lock-{self.thread}", self.ttl / 3, self._beat, self._not_renewed)
        try:
            with heartbeat.running():
                yield
        finally:
            self.release()

    def _beat(self) -> bool:
        try:
            self.renew()
        except ThreadLockLost as error:
            self._not_renewed(error)
        return True

    def _not_renewed(self, error: Exception) -> None:
        log.warning("cannot renew the lock of a thread", thread=self.thread, error=str(error) or "lost")

    def renew(self) -> None:
        """Restart the lock's time to live. Call it directly before each write, so that no other run can write then."""
        self._change(lambda pipe: None, lambda pipe, none: pipe.expire(thread_lock_key(self.thread), self.ttl))

    def release(self) -> None:
        """Release the lock if this run still holds it, and forget a thread without pending posts."""

        def work(pipe: Any) -> None:
            held = text(pipe.get(thread_lock_key(self.thread)) or b"") == self.holder
            pending = pipe.zcard(posts_key(self.thread))
            pipe.multi()
            if held:
                pipe.delete(thread_lock_key(self.thread))
            if held and not pending:
                stage_forget(pipe, self.thread)

        self.posts.demands.transact(work, thread_lock_key(self.thread), posts_key(self.thread))

    def head(self) -> Demand | None:
        """Return the first demand whose note is out of date."""
        while keys := texts(cast(list[bytes], self.posts.redis.zrange(posts_key(self.thread), 0, 0))):
            try:
                found = self.posts.demands.get(keys[0])
            except codec.BadRecord as error:  # one bad record must not stop the thread
                log.error("cannot read the record of a demand; its note is dropped", demand=keys[0], error=str(error))
                found = None
            if found is not None:
                return found
            self._change(lambda pipe: None, lambda pipe, none: self._remove_pending(pipe, keys[0]))
        return None

    def begin(self, key: str, body: str) -> Demand:
        """Record that this run is about to create the note.

        Raises:
            RecordChanged: the note must now have another body.
        """
        note = Note(begun=self.posts.now())

        def move(known: Demand) -> Demand:
            if notes.wanted(known) != body:
                raise RecordChanged(key)
            return replace(known, note=note)

        return self._change_record(key, move)

    def not_begun(self, key: str) -> Demand:
        """Record that no note exists, because GitHub refused to create it."""
        return self._change_record(key, lambda known: replace(known, note=None))

    def found(self, key: str, note: Note) -> Demand:
        """Record that the note exists, with any body."""
        return self._change_record(key, lambda known: replace(known, note=note))

    def shown(self, key: str, note: Note) -> Demand:
        """Record that the note shows `note.shown`. A note that is up to date is no longer pending.

        If the note shows the answer of an answered demand, the demand becomes posted in the same step.
        """

        def move(known: Demand) -> Demand:
            return posted_if_shown(replace(known, note=note), now_text())

        return self._change_record(key, move, is_settled=is_current)

    def fail(self, key: str, reason: str, *, tell: bool) -> Demand:
        """Record that the answer cannot or must not be posted. Without `tell` the note is no longer pending."""

        def move(known: Demand) -> Demand:
            return replace(machine.failed(known, reason, now_text()), tell=tell)

        return self._change_record(key, move, is_settled=lambda after: not tell)

    def drop(self, key: str) -> None:
        """Remove a pending note, although it is out of date."""
        self._change(lambda pipe: None, lambda pipe, none: self._remove_pending(pipe, key))

    def _change_record(
        self, key: str, move: Callable[[Demand], Demand], is_settled: Callable[[Demand], bool] = lambda after: False
    ) -> Demand:
        def read(pipe: Any) -> Demand:
            data = pipe.get(demand_key(key))
            if data is None:
                raise RecordChanged(key)
            return move(codec.load(data))

        def write(pipe: Any, after: Demand) -> None:
            self.posts.demands.save(pipe, after)
            if is_settled(after):
                self._remove_pending(pipe, key)

        return self._change(read, write, demand_key(key))

    def _remove_pending(self, pipe: Any, key: str) -> None:
        pipe.zrem(posts_key(self.thread), key)
        pipe.delete(wait_key(self.thread))

    def _change(self, read: Callable[[Any], _T], write: Callable[[Any, _T], None], *watched: str) -> _T:
        """Read and write as one transaction, while this run holds the lock. Raises ThreadLockLost."""

        def work(pipe: Any) -> _T:
            if text(pipe.get(thread_lock_key(self.thread)) or b"") != self.holder:
                raise ThreadLockLost(self.thread)
            found = read(pipe)
            pipe.multi()
            write(pipe, found)
            return found

        return self.posts.demands.transact(work, thread_lock_key(self.thread), *watched)


def is_current(demand: Demand) -> bool:
    """Whether the note is up to date."""
    body = notes.wanted(demand)
    return body is None or (demand.note is not None and demand.note.shown == notes.sha(body))


def posted_if_shown(demand: Demand, now: str) -> Demand:
    """Return the demand as posted if it is answered and its note shows the answer, otherwise unchanged."""
    return machine.posted(demand, now) if demand.state is DemandState.ANSWERED and is_current(demand) else demand
