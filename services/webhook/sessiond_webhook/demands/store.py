"""The demands in Redis. The pure functions of `machine` decide each change, which is one MULTI under WATCH.

    webhook:demand:{key}       the record, JSON
    webhook:open:{session}     keys of unanswered demands, by order
    webhook:sessions           sessions with unanswered demands
    webhook:runs:{session}     run leases, by their ends
    webhook:delivery:{id}      the outcome of a delivery
    webhook:early:{key}        an edit or deletion that arrived before its comment
    webhook:closed:{session}#{number}   when that pull request was last closed
    webhook:ended:{state}      keys of ended demands, by their ends, for 30 days
    webhook:withdrawals        ended demands whose tickets must still be withdrawn
    webhook:posts:{thread}     keys of demands whose notes are out of date, by order
    webhook:threads            threads with such keys
    webhook:posts-job:{thread} the last rq job that was enqueued to wake a poster (see `outbox_queue`)

Delivery, record and rq job are written together or not at all. So a delivery counts as seen only when it is durable.
Every method raises redis.RedisError while Redis is away.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

import redis

from sessiond_common.clock import now_text
from sessiond_common.jobs.queue import DEMANDS, POSTS, Jobs
from sessiond_webhook.demands import codec, machine
from sessiond_webhook.demands.comment import Comment
from sessiond_webhook.demands.machine import Demand, DemandState

DELIVERY_TTL: Final = 7 * 86_400
EARLY_TTL: Final = 86_400
ENDED_TTL: Final = 30 * 86_400
SESSIONS: Final = "webhook:sessions"
THREADS: Final = "webhook:threads"
WITHDRAWALS: Final = "webhook:withdrawals"
ARRIVALS: Final = "webhook:arrivals"
ANSWER_JOB: Final = "sessiond_webhook.handler.run"
POST_JOB: Final = "sessiond_webhook.poster.run"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StoredDelivery:
    """The result of a delivery. `outcome` is one word for logs and metrics, `demand` the record after it, if any."""

    outcome: str
    demand: Demand | None = None
    withdrawn: tuple[Demand, ...] = ()
    """Demands whose tickets must be withdrawn."""


class Demands:
    """Reads and writes demands. Safe to share between threads and greenlets."""

    def __init__(self, connection: "redis.Redis", jobs: Jobs) -> None:
        self.redis, self.jobs = connection, jobs

    # ---- reading -----------------------------------------------------------------------------

    def get(self, key: str) -> Demand | None:
        """Return the record, or None. Raises codec.BadRecord."""
        data = self.redis.get(demand_key(key))
        return codec.load(cast(bytes, data)) if data else None

    def unanswered(self, session: str) -> list[Demand]:
        """Return the open and answering demands of a session, in order."""
        return self._records(texts(cast(list[bytes], self.redis.zrange(open_key(session), 0, -1))))

    def without_ticket_before(self, demand: Demand, most: int = 8) -> list[Demand]:
        """Return unanswered demands before this one that have no ticket yet, in order: the nearest `most`."""
        top = f"({demand.order}"
        found = self.redis.zrange(open_key(demand.session), top, "-inf", desc=True, byscore=True, offset=0, num=most)
        earlier = self._records(texts(cast(list[bytes], found))[::-1])
        return [one for one in earlier if one.ticket is None]

    def _records(self, keys: list[str]) -> list[Demand]:
        if not keys:
            return []
        found = cast(list[bytes | None], self.redis.mget([demand_key(key) for key in keys]))
        return [codec.load(data) for data in found if data is not None]

    def sessions(self) -> list[str]:
        """Return the sessions with unanswered demands."""
        return sorted(text(s) for s in cast(set[bytes], self.redis.smembers(SESSIONS)))

    def ended(self) -> Counter[DemandState]:
        """Count the demands that ended in each state within the last 30 days."""
        pipe = self.redis.pipeline(transaction=False)
        for state in sorted(machine.ENDED):
            pipe.zcount(ended_key(state), time.time() - ENDED_TTL, "+inf")
        return Counter(dict(zip(sorted(machine.ENDED), pipe.execute(), strict=True)))

    def pending(self) -> list[Demand]:
        """Return the demands whose notes are out of date."""
        threads = sorted(texts(list(cast(set[bytes], self.redis.smembers(THREADS)))))
        pipe = self.redis.pipeline(transaction=False)
        for thread in threads:
            pipe.zrange(posts_key(thread), 0, -1)
        return self._records([text(key) for keys in pipe.execute() for key in keys])

    # ---- deliveries --------------------------------------------------------------------------

    def accept(self, delivery: str, comment: Comment, *, refuse: str | None = None) -> StoredDelivery:
        """Store a comment that asks for an answer. It is durable when this returns.

        `refuse` is the reason if the comment gets no answer.

        Outcomes: `accepted`; `refused`, also if the pull request was closed before; `duplicate`, this delivery was
        seen before; `known`, this comment was seen before; `withdrawn`, the comment was deleted before.
        """
        closing = closed_key(comment.session, comment.number)
        order = self.redis.incr(ARRIVALS)

        def work(pipe: Any) -> StoredDelivery:
            if pipe.exists(delivery_key(delivery)):
                return StoredDelivery("duplicate", _read(pipe, comment.key))
            known = _read(pipe, comment.key)
            early = pipe.get(early_key(comment.key))
            closed_at = pipe.get(closing)
            pipe.multi()
            if known is not None:
                return self._record_delivery(pipe, delivery, StoredDelivery("known", known))
            if early == b"deleted":
                return self._record_delivery(pipe, delivery, StoredDelivery("withdrawn"))
            fresh = Demand(_newest(comment, early), order, at={DemandState.OPEN.value: now_text()})
            reason = refuse
            if reason is None and comment.is_pull and closed_at and comment.created_at <= text(closed_at):
                reason = machine.CLOSED
            if reason is not None:
                refused = machine.refused(fresh, reason, now_text(), tell=True)
                self.save(pipe, refused)
                self.stage_post(pipe, refused)
                return self._record_delivery(pipe, delivery, StoredDelivery("refused", refused))
            fresh = self.stage_wake(pipe, fresh)
            self.save(pipe, fresh)
            self.stage_post(pipe, fresh)
            return self._record_delivery(pipe, delivery, StoredDelivery("accepted", fresh))

        return self.transact(work, delivery_key(delivery), demand_key(comment.key), early_key(comment.key), closing)

    def edit(self, delivery: str, comment: Comment) -> StoredDelivery:
        """Store an edited comment.

        Outcomes: `edited`; `unchanged`; `duplicate`; `late`, the comment is answered; `early`, the comment has not
        arrived yet.
        """

        def work(pipe: Any) -> StoredDelivery:
            if pipe.exists(delivery_key(delivery)):
                return StoredDelivery("duplicate", _read(pipe, comment.key))
            known = _read(pipe, comment.key)
            early = pipe.get(early_key(comment.key))
            pipe.multi()
            if known is None:
                if early != b"deleted":  # an earlier deletion is kept
                    newest = codec.dump_comment(_newest(comment, early))
                    pipe.set(early_key(comment.key), newest, ex=EARLY_TTL)
                return self._record_delivery(pipe, delivery, StoredDelivery("early"))
            try:
                after = machine.edited(known, comment, now_text())
            except machine.MoveRefused:
                return self._record_delivery(pipe, delivery, StoredDelivery("late", known))
            self.save(pipe, after)
            return self._record_delivery(
                pipe, delivery, StoredDelivery("unchanged" if after is known else "edited", after)
            )

        return self.transact(work, delivery_key(delivery), demand_key(comment.key), early_key(comment.key))

    def delete(self, delivery: str, key: str) -> StoredDelivery:
        """Withdraw the demand of a deleted comment. Outcomes: `withdrawn`, `duplicate`, `late`, `early`."""

        def work(pipe: Any) -> StoredDelivery:
            if pipe.exists(delivery_key(delivery)):
                return StoredDelivery("duplicate")
            known = _read(pipe, key)
            pipe.multi()
            if known is None:
                pipe.set(early_key(key), b"deleted", ex=EARLY_TTL)
                return self._record_delivery(pipe, delivery, StoredDelivery("early"))
            return self._record_delivery(pipe, delivery, self._withdraw(pipe, known, "deleted", tell=False))

        return self.transact(work, delivery_key(delivery), demand_key(key), early_key(key))

    def close(self, delivery: str, session: str, number: int, at: str | None = None) -> StoredDelivery:
        """Refuse the unanswered demands of a closed pull request. Their notes give the reason.

        `at` is the time of the closing, RFC 3339 UTC. Comments that are older but arrive later are refused too.
        Outcomes: `withdrawn`, `nothing`, `duplicate`.
        """
        if self.delivered(delivery):
            return StoredDelivery("duplicate")
        if at is not None:  # first, so that every comment accepted from now on finds it
            self.redis.set(closed_key(session, number), at.encode(), ex=EARLY_TTL)
        ended: list[Demand] = []
        for one in self.unanswered(session):
            if one.comment.is_pull and one.comment.number == number:
                after = self.refuse(one.key, machine.CLOSED)
                ended += [after] if after is not None else []
        self.redis.set(delivery_key(delivery), b"closed", ex=DELIVERY_TTL)
        return StoredDelivery("withdrawn" if ended else "nothing", withdrawn=tuple(ended))

    def refuse(self, key: str, reason: str) -> Demand | None:
        """Refuse an unanswered demand. Returns None if it is answered or has ended."""

        def work(pipe: Any) -> Demand | None:
            known = _read(pipe, key)
            pipe.multi()
            return self._withdraw(pipe, known, reason, tell=True).demand if known is not None else None

        return self.transact(work, demand_key(key))

    def _withdraw(self, pipe: Any, known: Demand, reason: str, *, tell: bool) -> StoredDelivery:
        try:
            after = machine.refused(known, reason, now_text(), tell=tell)
        except machine.MoveRefused:
            return StoredDelivery("late")
        self.save(pipe, after)
        pipe.sadd(WITHDRAWALS, after.key)
        if after.tell:
            self.stage_post(pipe, after)
        return StoredDelivery("withdrawn", after, (after,))

    def withdrawals(self) -> list[Demand]:
        """Return ended demands whose tickets must still be withdrawn."""
        keys = [text(k) for k in cast(set[bytes], self.redis.smembers(WITHDRAWALS))]
        return [found for found in map(self.get, keys) if found is not None]

    def withdrawn(self, key: str) -> None:
        """Record that the ticket is withdrawn, or that there was none."""
        self.redis.srem(WITHDRAWALS, key)

    def note_delivery(self, delivery: str, outcome: str) -> None:
        """Record a delivery that changed nothing here."""
        self.redis.set(delivery_key(delivery), outcome.encode(), ex=DELIVERY_TTL)

    def delivered(self, delivery: str) -> bool:
        """Whether this delivery was seen before."""
        return bool(self.redis.exists(delivery_key(delivery)))

    @staticmethod
    def _record_delivery(pipe: Any, delivery: str, accepted: StoredDelivery) -> StoredDelivery:
        pipe.set(delivery_key(delivery), accepted.outcome.encode(), ex=DELIVERY_TTL)
        return accepted

    @staticmethod
    def read(pipe: Any, key: str) -> Demand:
        """Return the record, within a transaction that watches it. Raises KeyError."""
        found = _read(pipe, key)
        if found is None:
            raise KeyError(key)
        return found

    # ---- changing ----------------------------------------------------------------------------

    def change(
        self,
        key: str,
        move: Callable[[Demand], Demand],
        stage: Callable[[Any, Demand], None] | None = None,
    ) -> Demand:
        """Apply a pure function to a record, as one transaction. `stage` adds commands to it.

        Returns the record after it.

        Raises:
            KeyError: there is no record.
            Exception: what `move` raises; nothing has changed.
        """

        def work(pipe: Any) -> Demand:
            known = self.read(pipe, key)
            after = move(known)
            pipe.multi()
            if after is not known:
                self.save(pipe, after)
                if stage is not None:
                    stage(pipe, after)
            return after

        return self.transact(work, demand_key(key))

    def wake(self, key: str) -> Demand | None:
        """Wake a handler for an unanswered demand. Returns None if it is answered or has ended."""

        def work(pipe: Any) -> Demand | None:
            known = _read(pipe, key)
            pipe.multi()
            if known is None or known.state not in machine.UNANSWERED:
                return None
            woken = self.stage_wake(pipe, known)
            self.save(pipe, woken)
            return woken

        return self.transact(work, demand_key(key))

    def stage_wake(self, pipe: Any, demand: Demand) -> Demand:
        """Within a MULTI: enqueue a job that wakes a handler. The caller must save the record that this returns."""
        return replace(demand, job=self.jobs.enqueue(DEMANDS, ANSWER_JOB, demand.session, demand.key, pipeline=pipe))

    def stage_post(self, pipe: Any, demand: Demand) -> None:
        """Within a MULTI: add the demand's note to the pending posts, behind those of earlier comments."""
        thread = demand.comment.thread
        # The score is the comment's arrival. If it were the post's time, an answer could be posted before the answer
        # to an earlier comment, after replacing its own pending "Seen" note.
        pipe.zadd(posts_key(thread), {demand.key: demand.order})
        pipe.zadd(THREADS, {thread: 0}, nx=True)
        pipe.set(post_job_key(thread), self.jobs.enqueue(POSTS, POST_JOB, thread, pipeline=pipe), ex=EARLY_TTL)

    def save(self, pipe: Any, demand: Demand) -> None:
        """Within a MULTI: write the record and its entries in the indexes."""
        ended = demand.state in machine.ENDED
        pipe.set(demand_key(demand.key), codec.dump(demand), ex=ENDED_TTL if ended else None)
        if demand.state in machine.UNANSWERED:
            pipe.zadd(open_key(demand.session), {demand.key: demand.order})
            pipe.sadd(SESSIONS, demand.session)
        else:
            pipe.zrem(open_key(demand.session), demand.key)
        if ended:
            pipe.zadd(ended_key(demand.state), {demand.key: time.time()}, nx=True)
            pipe.zremrangebyscore(ended_key(demand.state), "-inf", time.time() - ENDED_TTL)

    def transact(self, work: Callable[[Any], _T], *watched: str) -> _T:
        """Run `work` under WATCH. Run it again if another client changed what it read.

        `work` reads, calls `multi`, then writes.
        """
        return cast(_T, self.redis.transaction(cast(Any, work), *watched, value_from_callable=True))


def text(data: bytes | str) -> str:
    """Return a value of Redis as text."""
    return data.decode() if isinstance(data, bytes) else data


def texts(data: Sequence[bytes | str]) -> list[str]:
    """Return several values of Redis as texts."""
    return [text(one) for one in data]


def demand_key(key: str) -> str:
    return f"webhook:demand:{key}"


def open_key(session: str) -> str:
    return f"webhook:open:{session}"


def ended_key(state: DemandState) -> str:
    return f"webhook:ended:{state.value}"


def posts_key(thread: str) -> str:
    return f"webhook:posts:{thread}"


def post_job_key(thread: str) -> str:
    return f"webhook:posts-job:{thread}"


def delivery_key(delivery: str) -> str:
    return f"webhook:delivery:{delivery}"


def closed_key(session: str, number: int) -> str:
    return f"webhook:closed:{session}#{number}"


def early_key(key: str) -> str:
    return f"webhook:early:{key}"


def _read(pipe: Any, key: str) -> Demand | None:
    data = pipe.get(demand_key(key))
    return codec.load(data) if data else None


def _newest(comment: Comment, early: bytes | None) -> Comment:
    """Return the comment, or its edit that arrived before it."""
    if early is None:
        return comment
    other = codec.load_comment(early)
    return other if other.updated_at >= comment.updated_at else comment
