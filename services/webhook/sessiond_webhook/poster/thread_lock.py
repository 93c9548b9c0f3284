"""A thread's claim: the right of one poster's run to post there, and what it may change while it has it.

Every change is one transaction that also watches the claim: a run that stood still until another took the thread
changes nothing any more. GitHub knows no such thing; so the claim is renewed directly before each write there, and its
life is far longer than a call's deadline.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

import structlog

from sessiond_common.clock import now_text
from sessiond_common.heartbeat import Heartbeat
from sessiond_webhook.demands import codec
from sessiond_webhook.demands import machine as d
from sessiond_webhook.demands.machine import Demand, Note, State
from sessiond_webhook.demands.outbox_queue import Posts, claim_key, stage_forget, wait_key
from sessiond_webhook.demands.store import demand_key, posts_key, text, texts
from sessiond_webhook.poster import notes

log = structlog.get_logger("webhook.claims")
CLAIM_TTL: Final = 60
_T = TypeVar("_T")


class ClaimLost(Exception):
    """Another run may work on the thread now; this one must change nothing any more."""


class Changed(Exception):
    """The record says something else now than what was about to be written."""


def claim(posts: Posts, thread: str, ttl: int = CLAIM_TTL) -> "Claim | None":
    """The right to post in the thread, for `ttl` seconds; None while another run has it."""
    mine = Claim(posts, thread, uuid.uuid4().hex, ttl)
    return mine if posts.redis.set(claim_key(thread), mine.holder, nx=True, ex=ttl) else None


class Claim:
    """One run's right to post in a thread. What it changes is changed only while it has that right (ClaimLost)."""

    def __init__(self, posts: Posts, thread: str, holder: str, ttl: int) -> None:
        self.posts, self.thread, self.holder, self.ttl = posts, thread, holder, ttl

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While inside, a thread renews it every third of its life; afterwards it is given up."""
        heartbeat = Heartbeat(f"claim-{self.thread}", self.ttl / 3, self._beat, self._not_renewed)
        try:
            with heartbeat.running():
                yield
        finally:
            self.release()

    def _beat(self) -> bool:
        try:
            self.renew()
        except ClaimLost as error:
            self._not_renewed(error)
        return True

    def _not_renewed(self, error: Exception) -> None:
        log.warning("claim not renewed", thread=self.thread, error=str(error) or "lost")

    def renew(self) -> None:
        """Holds it for its whole life again; directly before each write, so that no other run can write meanwhile."""
        self._change(lambda pipe: None, lambda pipe, none: pipe.expire(claim_key(self.thread), self.ttl))

    def release(self) -> None:
        """Gives it up, if it is still this run's; a thread with nothing pending is forgotten."""

        def work(pipe: Any) -> None:
            mine = text(pipe.get(claim_key(self.thread)) or b"") == self.holder
            pending = pipe.zcard(posts_key(self.thread))
            pipe.multi()
            if mine:
                pipe.delete(claim_key(self.thread))
            if mine and not pending:
                stage_forget(pipe, self.thread)

        self.posts.demands.transact(work, claim_key(self.thread), posts_key(self.thread))

    def head(self) -> Demand | None:
        """The first demand whose note is to be brought up to date."""
        while keys := texts(cast(list[bytes], self.posts.redis.zrange(posts_key(self.thread), 0, 0))):
            try:
                found = self.posts.demands.get(keys[0])
            except codec.BadRecord as error:  # nobody can mend it here, and it must not stop the thread
                log.error("a record that cannot be read", demand=keys[0], error=str(error))
                found = None
            if found is not None:
                return found
            self._change(lambda pipe: None, lambda pipe, none: self._settle(pipe, keys[0]))
        return None

    def begin(self, key: str, body: str) -> Demand:
        """Says durably that a creation is begun, before it is. Raises Changed if the note must say something else."""
        note = Note(begun=self.posts.now())

        def move(known: Demand) -> Demand:
            if notes.wanted(known) != body:
                raise Changed(key)
            return replace(known, note=note)

        return self._note(key, move)

    def not_begun(self, key: str) -> Demand:
        """The creation was refused: no note of ours stands there."""
        return self._note(key, lambda known: replace(known, note=None))

    def found(self, key: str, note: Note) -> Demand:
        """Our note stands there, whatever it says."""
        return self._note(key, lambda known: replace(known, note=note))

    def shown(self, key: str, note: Note) -> Demand:
        """The note shows `note.shown`: recorded, and if that is what it must show, no longer pending.

        An answered demand whose final body it is becomes posted in the same step.
        """

        def move(known: Demand) -> Demand:
            return up_to_date(replace(known, note=note), now_text())

        return self._note(key, move, settle=current)

    def fail(self, key: str, reason: str, *, tell: bool) -> Demand:
        """The answer cannot be posted or must not be. Without `tell` it is no longer pending."""

        def move(known: Demand) -> Demand:
            return replace(d.failed(known, reason, now_text()), tell=tell)

        return self._note(key, move, settle=lambda after: not tell)

    def drop(self, key: str) -> None:
        """The note is no longer pending, although it is not up to date."""
        self._change(lambda pipe: None, lambda pipe, none: self._settle(pipe, key))

    def _note(
        self, key: str, move: Callable[[Demand], Demand], settle: Callable[[Demand], bool] = lambda after: False
    ) -> Demand:
        def read(pipe: Any) -> Demand:
            data = pipe.get(demand_key(key))
            if data is None:
                raise Changed(key)
            return move(codec.load(data))

        def write(pipe: Any, after: Demand) -> None:
            self.posts.demands.save(pipe, after)
            if settle(after):
                self._settle(pipe, key)

        return self._change(read, write, demand_key(key))

    def _settle(self, pipe: Any, key: str) -> None:
        pipe.zrem(posts_key(self.thread), key)
        pipe.delete(wait_key(self.thread))

    def _change(self, read: Callable[[Any], _T], write: Callable[[Any, _T], None], *watched: str) -> _T:
        """Reads and writes as one transaction, while the claim is this run's. Raises ClaimLost."""

        def work(pipe: Any) -> _T:
            if text(pipe.get(claim_key(self.thread)) or b"") != self.holder:
                raise ClaimLost(self.thread)
            found = read(pipe)
            pipe.multi()
            write(pipe, found)
            return found

        return self.posts.demands.transact(work, claim_key(self.thread), *watched)


def current(demand: Demand) -> bool:
    """Whether the note shows what it must."""
    body = notes.wanted(demand)
    return body is None or (demand.note is not None and demand.note.shown == notes.sha(body))


def up_to_date(demand: Demand, now: str) -> Demand:
    """Posted, if it is answered and the note shows the answer; else as it is."""
    return d.posted(demand, now) if demand.state is State.ANSWERED and current(demand) else demand
