"""The demands in Redis: every change is one MULTI under WATCH, decided by the pure functions of demand.py.

    webhook:demand:{key}      the record, JSON            webhook:open:{session}    unanswered keys by order
    webhook:sessions          sessions with such keys     webhook:runs:{session}    runs by when they count as dead
    webhook:delivery:{id}     a delivery's outcome        webhook:early:{key}       an edit or deletion that came first
    webhook:closed:{session}#{number}  when that pull request was closed last
    webhook:ended:{state}     keys of demands that ended so, by when: 30 days long
    webhook:withdrawals       ended demands whose tickets are still to be withdrawn
    webhook:posts:{thread}    keys whose note is to be brought up to date, in order; webhook:threads, threads with such
    webhook:posts-job:{thread} the rq job that was to wake a poster last (the rest of posting: posts.py)

Nothing is remembered as seen before it is safe: delivery, record and rq job are written together, or not at all.
Everything raises redis.RedisError when Redis is away.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

import redis

from sessiond_common.clock import now_text
from sessiond_common.jobs.queue import DEMANDS, POSTS, Jobs
from sessiond_webhook.demands import codec
from sessiond_webhook.demands import machine as d
from sessiond_webhook.demands.comment import Comment
from sessiond_webhook.demands.machine import Demand, State

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
class Accepted:
    """What a delivery came to. `outcome` is one word for logs and metrics; `demand` the record after it, if any."""

    outcome: str
    demand: Demand | None = None
    withdrawn: tuple[Demand, ...] = ()
    """Demands whose tickets are to be withdrawn."""


class Demands:
    """Reads and writes demands. Threads and greenlets may share it."""

    def __init__(self, connection: "redis.Redis", jobs: Jobs) -> None:
        self.redis, self.jobs = connection, jobs

    # ---- reading -----------------------------------------------------------------------------

    def get(self, key: str) -> Demand | None:
        """The record. Raises record.BadRecord."""
        data = self.redis.get(demand_key(key))
        return codec.load(cast(bytes, data)) if data else None

    def unanswered(self, session: str) -> list[Demand]:
        """Open and answering demands of a session, in order."""
        return self._records(texts(cast(list[bytes], self.redis.zrange(open_key(session), 0, -1))))

    def without_ticket_before(self, demand: Demand, most: int = 8) -> list[Demand]:
        """Unanswered demands that came before this one and have no ticket yet, in order; at most the nearest few."""
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
        """Sessions with unanswered demands."""
        return sorted(text(s) for s in cast(set[bytes], self.redis.smembers(SESSIONS)))

    def ended(self) -> Counter[State]:
        """How many demands ended in each state, as long as they are remembered."""
        pipe = self.redis.pipeline(transaction=False)
        for state in sorted(d.ENDED):
            pipe.zcount(ended_key(state), time.time() - ENDED_TTL, "+inf")
        return Counter(dict(zip(sorted(d.ENDED), pipe.execute(), strict=True)))

    def pending(self) -> list[Demand]:
        """Demands whose notes are to be brought up to date."""
        threads = sorted(texts(list(cast(set[bytes], self.redis.smembers(THREADS)))))
        pipe = self.redis.pipeline(transaction=False)
        for thread in threads:
            pipe.zrange(posts_key(thread), 0, -1)
        return self._records([text(key) for keys in pipe.execute() for key in keys])

    # ---- deliveries --------------------------------------------------------------------------

    def accept(self, delivery: str, comment: Comment, *, refuse: str | None = None) -> Accepted:
        """A comment that wants an answer: durable when this returns. `refuse` names why it gets none.

        Outcomes: accepted, refused (also if its pull request's closing came before it), duplicate (this delivery
        came before), known (this comment did), withdrawn (its deletion came before it).
        """
        closing = closed_key(comment.session, comment.number)
        order = self.redis.incr(ARRIVALS)

        def work(pipe: Any) -> Accepted:
            if pipe.exists(delivery_key(delivery)):
                return Accepted("duplicate", _read(pipe, comment.key))
            known = _read(pipe, comment.key)
            early = pipe.get(early_key(comment.key))
            closed_at = pipe.get(closing)
            pipe.multi()
            if known is not None:
                return self._noted(pipe, delivery, Accepted("known", known))
            if early == b"deleted":
                return self._noted(pipe, delivery, Accepted("withdrawn"))
            fresh = Demand(_newest(comment, early), order, at={State.OPEN.value: now_text()})
            reason = refuse
            if reason is None and comment.is_pull and closed_at and comment.created_at <= text(closed_at):
                reason = d.CLOSED
            if reason is not None:
                refused = d.refused(fresh, reason, now_text(), tell=True)
                self.save(pipe, refused)
                self.stage_post(pipe, refused)
                return self._noted(pipe, delivery, Accepted("refused", refused))
            fresh = self.stage_wake(pipe, fresh)
            self.save(pipe, fresh)
            self.stage_post(pipe, fresh)
            return self._noted(pipe, delivery, Accepted("accepted", fresh))

        return self.transact(work, delivery_key(delivery), demand_key(comment.key), early_key(comment.key), closing)

    def edit(self, delivery: str, comment: Comment) -> Accepted:
        """The comment reads otherwise now. Outcomes: edited, duplicate, late (it has its answer), early, unchanged."""

        def work(pipe: Any) -> Accepted:
            if pipe.exists(delivery_key(delivery)):
                return Accepted("duplicate", _read(pipe, comment.key))
            known = _read(pipe, comment.key)
            early = pipe.get(early_key(comment.key))
            pipe.multi()
            if known is None:
                if early != b"deleted":  # a deletion that came before this edit stands
                    newest = codec.dump_comment(_newest(comment, early))
                    pipe.set(early_key(comment.key), newest, ex=EARLY_TTL)
                return self._noted(pipe, delivery, Accepted("early"))
            try:
                after = d.edited(known, comment, now_text())
            except d.NotNow:
                return self._noted(pipe, delivery, Accepted("late", known))
            self.save(pipe, after)
            return self._noted(pipe, delivery, Accepted("unchanged" if after is known else "edited", after))

        return self.transact(work, delivery_key(delivery), demand_key(comment.key), early_key(comment.key))

    def delete(self, delivery: str, key: str) -> Accepted:
        """The comment is gone. Outcomes: withdrawn, duplicate, late, early."""

        def work(pipe: Any) -> Accepted:
            if pipe.exists(delivery_key(delivery)):
                return Accepted("duplicate")
            known = _read(pipe, key)
            pipe.multi()
            if known is None:
                pipe.set(early_key(key), b"deleted", ex=EARLY_TTL)
                return self._noted(pipe, delivery, Accepted("early"))
            return self._noted(pipe, delivery, self._withdraw(pipe, known, "deleted", tell=False))

        return self.transact(work, delivery_key(delivery), demand_key(key), early_key(key))

    def close(self, delivery: str, session: str, number: int, at: str | None = None) -> Accepted:
        """The pull request was closed: its unanswered demands are refused and told so.

        `at` (RFC 3339 UTC) is when; comments from before it that are delivered only now are refused too.
        Outcomes: withdrawn, nothing, duplicate.
        """
        if self.delivered(delivery):
            return Accepted("duplicate")
        if at is not None:  # before the demands are looked at: whoever is accepted from here on sees it
            self.redis.set(closed_key(session, number), at.encode(), ex=EARLY_TTL)
        ended: list[Demand] = []
        for one in self.unanswered(session):
            if one.comment.is_pull and one.comment.number == number:
                after = self.refuse(one.key, d.CLOSED)
                ended += [after] if after is not None else []
        self.redis.set(delivery_key(delivery), b"closed", ex=DELIVERY_TTL)
        return Accepted("withdrawn" if ended else "nothing", withdrawn=tuple(ended))

    def refuse(self, key: str, reason: str) -> Demand | None:
        """Ends an unanswered demand with a reason that is told. None if it has ended or was answered."""

        def work(pipe: Any) -> Demand | None:
            known = _read(pipe, key)
            pipe.multi()
            return self._withdraw(pipe, known, reason, tell=True).demand if known is not None else None

        return self.transact(work, demand_key(key))

    def _withdraw(self, pipe: Any, known: Demand, reason: str, *, tell: bool) -> Accepted:
        try:
            after = d.refused(known, reason, now_text(), tell=tell)
        except d.NotNow:
            return Accepted("late")
        self.save(pipe, after)
        pipe.sadd(WITHDRAWALS, after.key)
        if after.tell:
            self.stage_post(pipe, after)
        return Accepted("withdrawn", after, (after,))

    def withdrawals(self) -> list[Demand]:
        """Ended demands whose tickets are still to be withdrawn."""
        keys = [text(k) for k in cast(set[bytes], self.redis.smembers(WITHDRAWALS))]
        return [found for found in map(self.get, keys) if found is not None]

    def withdrawn(self, key: str) -> None:
        """The ticket is withdrawn, or there never was one."""
        self.redis.srem(WITHDRAWALS, key)

    def note_delivery(self, delivery: str, outcome: str) -> None:
        """Remembers a delivery that changed nothing here."""
        self.redis.set(delivery_key(delivery), outcome.encode(), ex=DELIVERY_TTL)

    def delivered(self, delivery: str) -> bool:
        """Whether this delivery came before."""
        return bool(self.redis.exists(delivery_key(delivery)))

    @staticmethod
    def _noted(pipe: Any, delivery: str, accepted: Accepted) -> Accepted:
        pipe.set(delivery_key(delivery), accepted.outcome.encode(), ex=DELIVERY_TTL)
        return accepted

    @staticmethod
    def read(pipe: Any, key: str) -> Demand:
        """The record, within a transaction that watches it. Raises KeyError."""
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
        """Applies a pure function to a record, as one transaction; `stage` adds commands to it.

        Returns the record after it. Raises what `move` raises (nothing changed), KeyError without a record.
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
        """Wakes a handler for an unanswered demand. None if it is answered or ended."""

        def work(pipe: Any) -> Demand | None:
            known = _read(pipe, key)
            pipe.multi()
            if known is None or known.state not in d.UNANSWERED:
                return None
            woken = self.stage_wake(pipe, known)
            self.save(pipe, woken)
            return woken

        return self.transact(work, demand_key(key))

    def stage_wake(self, pipe: Any, demand: Demand) -> Demand:
        """Within a MULTI: a job that wakes a handler. Returns the record with the job's id, for the caller to save."""
        return replace(demand, job=self.jobs.enqueue(DEMANDS, ANSWER_JOB, demand.session, demand.key, pipeline=pipe))

    def stage_post(self, pipe: Any, demand: Demand) -> None:
        """Within a MULTI: the demand's note is to be brought up to date, behind those of earlier comments."""
        thread = demand.comment.thread
        # By arrival of the comment, not by when its post came to be: else an answer that takes the place of
        # its own waiting "seen" would overtake the answer to an earlier comment.
        pipe.zadd(posts_key(thread), {demand.key: demand.order})
        pipe.zadd(THREADS, {thread: 0}, nx=True)
        pipe.set(post_job_key(thread), self.jobs.enqueue(POSTS, POST_JOB, thread, pipeline=pipe), ex=EARLY_TTL)

    def save(self, pipe: Any, demand: Demand) -> None:
        """The record, and the index that follows from its state."""
        ended = demand.state in d.ENDED
        pipe.set(demand_key(demand.key), codec.dump(demand), ex=ENDED_TTL if ended else None)
        if demand.state in d.UNANSWERED:
            pipe.zadd(open_key(demand.session), {demand.key: demand.order})
            pipe.sadd(SESSIONS, demand.session)
        else:
            pipe.zrem(open_key(demand.session), demand.key)
        if ended:
            pipe.zadd(ended_key(demand.state), {demand.key: time.time()}, nx=True)
            pipe.zremrangebyscore(ended_key(demand.state), "-inf", time.time() - ENDED_TTL)

    def transact(self, work: Callable[[Any], _T], *watched: str) -> _T:
        """Runs `work` under WATCH until nobody else changed what it read. It reads, calls `multi`, and writes."""
        return cast(_T, self.redis.transaction(cast(Any, work), *watched, value_from_callable=True))


def text(data: bytes | str) -> str:
    """What Redis gave, as text."""
    return data.decode() if isinstance(data, bytes) else data


def texts(data: Sequence[bytes | str]) -> list[str]:
    """The same for several."""
    return [text(one) for one in data]


def demand_key(key: str) -> str:
    return f"webhook:demand:{key}"


def open_key(session: str) -> str:
    return f"webhook:open:{session}"


def ended_key(state: State) -> str:
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
    """The comment, or its edit that came before it."""
    if early is None:
        return comment
    other = codec.load_comment(early)
    return other if other.updated_at >= comment.updated_at else comment
