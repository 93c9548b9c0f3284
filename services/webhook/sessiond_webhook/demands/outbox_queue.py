"""The pending posts in Redis: which notes are out of date, and which run of a poster works on them.

    webhook:threads              threads with pending posts, by the time when they were last served
    webhook:posts:{thread}       keys of the thread's demands with pending posts, by order
    webhook:posts-claim:{thread} the lock of the thread: the run that works on it, for 60 s
    webhook:posts-wait:{thread}  the end of the thread's pause, and how many tries failed
    webhook:posts-job:{thread}   the last rq job that was enqueued to wake a poster
    webhook:posts-limit:{account} until when the rate limit of this account lasts

A pending key only means that the note is out of date. `poster.notes` computes the note's text from the record when a
run serves it. The transaction that records an up-to-date note removes its key. Times are those of Redis's clock,
because the posters run on many machines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, cast

import orjson
import structlog

from sessiond_common.jobs.queue import POSTS
from sessiond_webhook.demands.store import POST_JOB, THREADS, Demands, post_job_key, posts_key, text, texts

log = structlog.get_logger("webhook.posts")
LATE: Final = 3.0
"""Seconds after which a scheduled job that did not start counts as lost."""
_KEPT: Final = 86_400
"""Seconds for which the number of failed tries is kept after a wait."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause of a thread. It ends at `until` (Redis's clock, epoch seconds), after `tries` failures in a row."""

    until: float = 0.0
    tries: int = 0


class Posts:
    """The pending posts of every thread. Every method raises redis.RedisError while Redis is away."""

    def __init__(self, demands: Demands) -> None:
        self.demands, self.redis = demands, demands.redis

    def now(self) -> float:
        """Return the time of Redis, in epoch seconds."""
        seconds, micros = self.redis.time()
        return seconds + micros / 1e6

    def pending(self, thread: str) -> int:
        """Count the thread's notes that are out of date."""
        return self.redis.zcard(posts_key(thread))

    def threads(self) -> list[str]:
        """Return the threads with pending posts. The first has waited longest."""
        return texts(cast(list[bytes], self.redis.zrange(THREADS, 0, -1)))

    def served(self, thread: str) -> None:
        """Record that a run serves the thread now, so that the other threads come first next time."""
        self.redis.zadd(THREADS, {thread: self.now()}, xx=True)

    def is_locked(self, thread: str) -> bool:
        """Whether a run holds the lock of the thread."""
        return bool(self.redis.exists(thread_lock_key(thread)))

    def forget(self, thread: str) -> None:
        """Stop listing a thread without pending posts."""

        def work(pipe: Any) -> None:
            pending = pipe.zcard(posts_key(thread))
            pipe.multi()
            if not pending:
                stage_forget(pipe, thread)

        self.demands.transact(work, posts_key(thread))

    def account_id(self, name: str, ask: Callable[[], int]) -> int:
        """Return the id of the bot's account. `ask` is called once for each `name`; its result is stored."""
        known = cast(bytes | None, self.redis.get(f"webhook:account:{name}"))
        if known:
            return int(known)
        found = ask()
        self.redis.set(f"webhook:account:{name}", found)
        return found

    # ---- waiting -----------------------------------------------------------------------------

    def wait(self, thread: str) -> Wait:
        """Return the pause of the thread."""
        data = cast(bytes | None, self.redis.get(wait_key(thread)))
        return Wait(*orjson.loads(data)) if data else Wait()

    def limit(self, account: str) -> float:
        """Return the time at which the rate limit of this account ends, or 0.0."""
        return float(text(cast(bytes, self.redis.get(limit_key(account)) or b"0")))

    def set_limit(self, account: str, until: float) -> None:
        """Record that the rate limit of this account ends at `until`. A later recorded time is kept."""

        def work(pipe: Any) -> None:
            known = float(text(pipe.get(limit_key(account)) or b"0"))
            pipe.multi()
            if until > known:
                pipe.set(limit_key(account), repr(until), pxat=int(until * 1000) + 1)

        self.demands.transact(work, limit_key(account))

    def postpone(self, thread: str, wait: Wait) -> None:
        """Let the thread wait until `wait.until`, and schedule a job for that time."""
        pipe = self.redis.pipeline()
        pipe.multi()
        at = datetime.fromtimestamp(wait.until, UTC)
        ends = int(wait.until) + _KEPT
        pipe.set(wait_key(thread), orjson.dumps([wait.until, wait.tries]), exat=ends)
        job = self.demands.jobs.enqueue(POSTS, POST_JOB, thread, pipeline=pipe, at=at)
        pipe.set(post_job_key(thread), job, exat=ends)
        pipe.execute()

    def wake(self, thread: str) -> None:
        """Enqueue a job for the thread now, and end a pause that is over."""
        wait = self.wait(thread)
        pipe = self.redis.pipeline()
        pipe.multi()
        if 0 < wait.until <= self.now():
            pipe.set(wait_key(thread), orjson.dumps([0.0, wait.tries]), ex=_KEPT)
        job = self.demands.jobs.enqueue(POSTS, POST_JOB, thread, pipeline=pipe)
        pipe.set(post_job_key(thread), job, ex=_KEPT)
        pipe.execute()

    def has_job(self, thread: str) -> bool:
        """Whether an enqueued or scheduled job will serve the thread."""
        return self.demands.jobs.waiting(text(cast(bytes, self.redis.get(post_job_key(thread)) or b"")))


def stage_forget(pipe: Any, thread: str) -> None:
    """Within a MULTI: stop listing a thread without pending posts."""
    pipe.zrem(THREADS, thread)
    pipe.delete(wait_key(thread), post_job_key(thread))


def sweep_posts(demands: Demands) -> int:
    """Enqueue a job for each thread with pending posts that no job will serve. Returns how many."""
    posts, woken = Posts(demands), 0
    for thread in posts.threads():
        if not posts.pending(thread):
            posts.forget(thread)
        elif not posts.is_locked(thread) and _has_lost_job(posts, thread):
            posts.wake(thread)
            woken += 1
    if woken:
        log.info("threads woken", count=woken)
    return woken


def _has_lost_job(posts: Posts, thread: str) -> bool:
    until, now = posts.wait(thread).until, posts.now()
    if until > now:
        return False
    # The scheduler of a killed poster keeps its lock for a minute. During that time, no scheduled job starts.
    return (until > 0 and now - until > LATE) or not posts.has_job(thread)


def thread_lock_key(thread: str) -> str:
    return f"webhook:posts-claim:{thread}"


def wait_key(thread: str) -> str:
    return f"webhook:posts-wait:{thread}"


def limit_key(account: str) -> str:
    return f"webhook:posts-limit:{account}"
