"""The pending posts in Redis: which demands' notes are to be brought up to date, and who does it.

    webhook:threads              threads with pending posts, by when they were served
    webhook:posts:{thread}       their demands' keys, by the order in which they came
    webhook:posts-claim:{thread} the run that works on it, 60 s long                   webhook:posts-job:{thread}
    webhook:posts-wait:{thread}  until when nobody tries, and how often it failed      webhook:posts-limit:{account}

Levels, not edges: a pending key says "this note is to be brought up to date", never to what; notes.py says that, from
the record as it is when somebody gets round to it. A key leaves the set in the same transaction in which the record
says that what the note shows is what it must show. Times are Redis's clock: the posters are on many machines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, cast

import orjson
import structlog

from sessiond_common.jobs.queue import POSTS
from sessiond_webhook.demands.store import POST_JOB, THREADS, Demands, post_job_key, posts_key, text, texts  # fmt: skip

log = structlog.get_logger("webhook.posts")
LATE: Final = 3.0
"""Seconds after which a scheduled job that did not come counts as lost."""
_KEPT: Final = 86_400
"""Seconds that a wait is remembered after it is over: how often it failed counts on."""
_T = TypeVar("_T")


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
        """Threads with pending posts, the one that was served longest ago first."""
        return texts(cast(list[bytes], self.redis.zrange(THREADS, 0, -1)))

    def served(self, thread: str) -> None:
        """A run serves it now: the others come before it next time."""
        self.redis.zadd(THREADS, {thread: self.now()}, xx=True)

    def claimed(self, thread: str) -> bool:
        """Whether a run works on it."""
        return bool(self.redis.exists(claim_key(thread)))

    def forget(self, thread: str) -> None:
        """A thread with nothing pending is no longer listed."""

        def work(pipe: Any) -> None:
            pending = pipe.zcard(posts_key(thread))
            pipe.multi()
            if not pending:
                stage_forget(pipe, thread)

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
        pipe.multi()
        at = datetime.fromtimestamp(wait.until, UTC)
        ends = int(wait.until) + _KEPT
        pipe.set(wait_key(thread), orjson.dumps([wait.until, wait.tries]), exat=ends)
        job = self.demands.jobs.enqueue(POSTS, POST_JOB, thread, pipeline=pipe, at=at)
        pipe.set(post_job_key(thread), job, exat=ends)
        pipe.execute()

    def wake(self, thread: str) -> None:
        """A job that works on the thread now; a wait that is over is no longer one."""
        wait = self.wait(thread)
        pipe = self.redis.pipeline()
        pipe.multi()
        if 0 < wait.until <= self.now():
            pipe.set(wait_key(thread), orjson.dumps([0.0, wait.tries]), ex=_KEPT)
        job = self.demands.jobs.enqueue(POSTS, POST_JOB, thread, pipeline=pipe)
        pipe.set(post_job_key(thread), job, ex=_KEPT)
        pipe.execute()

    def awake(self, thread: str) -> bool:
        """Whether a job is there that will begin to work on it."""
        return self.demands.jobs.waiting(text(cast(bytes, self.redis.get(post_job_key(thread)) or b"")))


def stage_forget(pipe: Any, thread: str) -> None:
    """Within a MULTI: the thread has nothing pending and is not listed."""
    pipe.zrem(THREADS, thread)
    pipe.delete(wait_key(thread), post_job_key(thread))


def sweep_posts(demands: Demands) -> int:
    """A job for every thread with pending posts for which none will come. Returns how many were woken."""
    posts, woken = Posts(demands), 0
    for thread in posts.threads():
        if not posts.pending(thread):
            posts.forget(thread)
        elif not posts.claimed(thread) and _forgotten(posts, thread):
            posts.wake(thread)
            woken += 1
    if woken:
        log.info("threads woken", count=woken)
    return woken


def _forgotten(posts: Posts, thread: str) -> bool:
    until, now = posts.wait(thread).until, posts.now()
    if until > now:
        return False
    # The scheduler of a poster that was killed keeps its lock for a minute: its scheduled jobs wait for nobody.
    return (until > 0 and now - until > LATE) or not posts.awake(thread)


def claim_key(thread: str) -> str:
    return f"webhook:posts-claim:{thread}"


def wait_key(thread: str) -> str:
    return f"webhook:posts-wait:{thread}"


def limit_key(account: str) -> str:
    return f"webhook:posts-limit:{account}"
