"""The pending posts in Redis: which demands' notes are to be brought up to date, and who does it.

    webhook:posts:{thread}       keys of demands, by the order in which they came      webhook:threads    such threads
    webhook:posts-claim:{thread} the run that works on it, 60 s long                   webhook:posts-job:{thread}
    webhook:posts-wait:{thread}  until when nobody tries, and how often it failed      webhook:posts-limit:{account}

Levels, not edges: a pending key says "this note is to be brought up to date", never to what; notes.py says that, from
the record as it is when somebody gets round to it. A key leaves the set in the same transaction in which the record
says that what the note shows is what it must show. Times are Redis's clock: the posters are on many machines.
"""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, cast

import orjson
import redis
import structlog

from base.jobs import POSTS
from webhook import demand as d
from webhook import notes, record
from webhook.demand import Demand, Note, State
from webhook.demands import (
    POST_JOB,
    THREADS,
    Demands,
    demand_key,
    now_text,
    post_job_key,
    posts_key,
    text,
    texts,
)  # fmt: skip

log = structlog.get_logger("webhook.posts")
_KEPT: Final = 86_400
"""Seconds that a wait is remembered after it is over: how often it failed counts on."""
_T = TypeVar("_T")


class ClaimLost(Exception):
    """Another run may work on the thread now; this one must change nothing any more."""


class Changed(Exception):
    """The record says something else now than what was about to be written."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nobody tries before `until` (Redis's clock, epoch seconds); `tries` failed in a row."""

    until: float = 0.0
    tries: int = 0


class Posts:
    """The pending posts of every thread. Everything raises redis.RedisError when Redis is away."""

    def __init__(self, demands: Demands) -> None:
        self.demands, self.redis = demands, demands.redis

    def now(self) -> float:
        """Redis's clock, epoch seconds."""
        seconds, micros = self.redis.time()
        return seconds + micros / 1e6

    def pending(self, thread: str) -> int:
        """How many notes of it are to be brought up to date."""
        return self.redis.zcard(posts_key(thread))

    def threads(self) -> list[str]:
        """Threads with pending posts."""
        return sorted(texts(list(cast(set[bytes], self.redis.smembers(THREADS)))))

    def claimed(self, thread: str) -> bool:
        """Whether a run works on it."""
        return bool(self.redis.exists(claim_key(thread)))

    def claim(self, thread: str, ttl: int = 60) -> "Claim | None":
        """The right to post in the thread, for `ttl` seconds; None while another run has it."""
        claim = Claim(self, thread, uuid.uuid4().hex, ttl)
        return claim if self.redis.set(claim_key(thread), claim.holder, nx=True, ex=ttl) else None

    def forget(self, thread: str) -> None:
        """A thread with nothing pending is no longer listed."""

        def work(pipe: Any) -> None:
            pending = pipe.zcard(posts_key(thread))
            pipe.multi()
            if not pending:
                _forget(pipe, thread)

        self.demands.transact(work, posts_key(thread))

    def account_id(self, name: str, ask: Callable[[], int]) -> int:
        """The id of our own account, asked once for each `name` and kept."""
        known = cast(bytes | None, self.redis.get(f"webhook:account:{name}"))
        if known:
            return int(known)
        found = ask()
        self.redis.set(f"webhook:account:{name}", found)
        return found

    # ---- waiting -----------------------------------------------------------------------------

    def wait(self, thread: str) -> Wait:
        """Until when nobody tries."""
        data = cast(bytes | None, self.redis.get(wait_key(thread)))
        return Wait(*orjson.loads(data)) if data else Wait()

    def limit(self, account: str) -> float:
        """Until when this account's rate limit lets nobody ask; 0.0 when it does not."""
        return float(text(cast(bytes, self.redis.get(limit_key(account)) or b"0")))

    def set_limit(self, account: str, until: float) -> None:
        """Nobody asks for this account before `until`; a later time that is known already stands."""

        def work(pipe: Any) -> None:
            known = float(text(pipe.get(limit_key(account)) or b"0"))
            pipe.multi()
            if until > known:
                pipe.set(limit_key(account), repr(until), pxat=int(until * 1000) + 1)

        self.demands.transact(work, limit_key(account))

    def put_off(self, thread: str, wait: Wait) -> None:
        """Nobody tries before `wait.until`; a job is there for then."""
        pipe = self.redis.pipeline()
        at = datetime.fromtimestamp(wait.until, UTC)
        ends = int(wait.until) + _KEPT
        pipe.set(wait_key(thread), orjson.dumps([wait.until, wait.tries]), exat=ends)
        job = self.demands.jobs.enqueue(POSTS, POST_JOB, thread, pipeline=pipe, at=at)
        pipe.set(post_job_key(thread), job, exat=ends)
        pipe.execute()

    def wake(self, thread: str) -> None:
        """A job that works on the thread."""
        pipe = self.redis.pipeline()
        job = self.demands.jobs.enqueue(POSTS, POST_JOB, thread, pipeline=pipe)
        pipe.set(post_job_key(thread), job, ex=_KEPT)
        pipe.execute()

    def awake(self, thread: str) -> bool:
        """Whether a job is there that will begin to work on it."""
        return self.demands.jobs.waiting(text(cast(bytes, self.redis.get(post_job_key(thread)) or b"")))


class Claim:
    """One run's right to post in a thread. What it changes is changed only while it has that right (ClaimLost)."""

    def __init__(self, posts: Posts, thread: str, holder: str, ttl: int) -> None:
        self.posts, self.thread, self.holder, self.ttl = posts, thread, holder, ttl

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While inside, a thread renews it every third of its life; afterwards it is given up."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self.ttl / 3):
                try:
                    self.renew()
                except (redis.RedisError, ClaimLost) as error:
                    log.warning("claim not renewed", thread=self.thread, error=str(error) or "lost")

        thread = threading.Thread(target=renew, name=f"claim-{self.thread}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=2.0)
            self.release()

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
                _forget(pipe, self.thread)

        self.posts.demands.transact(work, claim_key(self.thread), posts_key(self.thread))

    def head(self) -> Demand | None:
        """The first demand whose note is to be brought up to date."""
        while keys := texts(cast(list[bytes], self.posts.redis.zrange(posts_key(self.thread), 0, 0))):
            try:
                found = self.posts.demands.get(keys[0])
            except record.BadRecord as error:  # nobody can mend it here, and it must not stop the thread
                log.error("a record that cannot be read", key=keys[0], error=str(error))
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
            return move(record.load(data))

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


def _forget(pipe: Any, thread: str) -> None:
    pipe.srem(THREADS, thread)
    pipe.delete(wait_key(thread), post_job_key(thread))


def current(demand: Demand) -> bool:
    """Whether the note shows what it must."""
    body = notes.wanted(demand)
    return body is None or (demand.note is not None and demand.note.shown == notes.sha(body))


def up_to_date(demand: Demand, now: str) -> Demand:
    """Posted, if it is answered and the note shows the answer; else as it is."""
    return d.posted(demand, now) if demand.state is State.ANSWERED and current(demand) else demand


def sweep_posts(demands: Demands) -> int:
    """A job for every thread with pending posts for which none will come. Returns how many were woken."""
    posts, woken = Posts(demands), 0
    for thread in posts.threads():
        if not posts.pending(thread):
            posts.forget(thread)
        elif not posts.claimed(thread) and posts.wait(thread).until <= posts.now() and not posts.awake(thread):
            posts.wake(thread)
            woken += 1
    if woken:
        log.info("threads woken", count=woken)
    return woken


def claim_key(thread: str) -> str:
    return f"webhook:posts-claim:{thread}"


def wait_key(thread: str) -> str:
    return f"webhook:posts-wait:{thread}"


def limit_key(account: str) -> str:
    return f"webhook:posts-limit:{account}"
