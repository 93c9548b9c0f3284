"""Job queues on rq. A job only wakes a process; a record of this project says what the process must do.

Job ids are random, because rq does not deduplicate: a repeated id is enqueued twice, and a finished job is forgotten.
An extra job is harmless, because every run first acquires its record. Arguments are JSON.
"""

import uuid
from datetime import datetime, timedelta
from typing import Any, Final

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus

DEMANDS: Final = "demands"
"""Wakes a handler of the webhook."""
POSTS: Final = "posts"
"""Wakes the poster of the webhook."""
TASKS: Final = "tasks"
"""Wakes a run of the worker."""

FAILURE_TTL: Final = 86_400
MONITORING_SECONDS: Final = 5
"""How often a parent records that its work-horse still runs."""
STALE_SECONDS: Final = 4 * MONITORING_SECONDS
"""A job counts as dead when its parent has not recorded this for so many seconds."""
CALL_DEADLINE: Final = 5.0
CONNECTIONS: Final = 64


def connect(
    url: str, *, deadline: float = CALL_DEADLINE, retries: int = 2, connections: int = CONNECTIONS
) -> "redis.Redis":
    """Return a client with a connection pool. Its calls raise redis.ConnectionError or redis.TimeoutError.

    `deadline` limits one attempt of a call, and the wait for a free one of the `connections`, in seconds.
    """
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=deadline,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries),
        socket_timeout=deadline,
        socket_connect_timeout=2.0,
        health_check_interval=30,
    )
    return redis.Redis(connection_pool=pool)


class Jobs:
    """The three queues on one Redis."""

    def __init__(self, connection: "redis.Redis") -> None:
        self._redis = connection
        self._queues: dict[str, Queue] = {}

    def queue(self, name: str) -> Queue:
        """Return the rq queue of this name."""
        if name not in self._queues:  # a new Queue asks the server for its version
            self._queues[name] = Queue(name, connection=self._redis, serializer="json")
        return self._queues[name]

    def enqueue(self, name: str, function: str, *args: Any, pipeline: Any = None, at: datetime | None = None) -> str:
        """Enqueue a job. `function` is a dotted path, `args` are JSON values. Returns the job's id.

        With `pipeline`, the job is enqueued when the pipeline is executed. Call `pipeline.multi()` before any command;
        otherwise rq calls it too late, and redis-py raises RedisError. `at`, an aware time, delays the job; delayed
        jobs need a worker process with a scheduler.
        """
        queue = self.queue(name)
        job_id = f"{name}-{uuid.uuid4().hex}"
        options: dict[str, Any] = {
            "job_id": job_id, "timeout": -1, "result_ttl": 0, "failure_ttl": FAILURE_TTL,
            "description": f"{function} {' '.join(map(str, args))}",
        }  # fmt: skip
        if at is not None:
            job = queue.create_job(function, args=args, **options)
            # rq drops the fraction of a second: without the added second, the job could come too early.
            queue.schedule_job(job, at + timedelta(seconds=1), pipeline=pipeline)
        else:
            queue.enqueue_call(function, args=args, pipeline=pipeline, **options)
        return job_id

    def live(self, job_id: str | None) -> bool:
        """Return whether a job waits or runs: it is queued, scheduled, or was recently recorded as running."""
        job = self._fetch(job_id)
        if job is None:
            return False
        status = job.get_status(refresh=False)
        return self._waits(job) or (status in (JobStatus.QUEUED, JobStatus.STARTED) and self._fresh(job))

    def waiting(self, job_id: str | None) -> bool:
        """Return whether a job is queued or scheduled and has not begun. Use it for records whose runs have a lease."""
        job = self._fetch(job_id)
        return job is not None and self._waits(job)

    def _fetch(self, job_id: str | None) -> Job | None:
        if not job_id:
            return None
        try:
            return Job.fetch(job_id, connection=self._redis, serializer="json")
        except NoSuchJobError:
            return None

    def _waits(self, job: Job) -> bool:
        status = job.get_status(refresh=False)
        if status is JobStatus.QUEUED:
            return self._redis.lpos(f"rq:queue:{job.origin}", job.id) is not None
        return status is JobStatus.SCHEDULED

    @staticmethod
    def _fresh(job: Job) -> bool:
        beat = job.last_heartbeat or job.enqueued_at
        if beat is None:
            return False
        return (datetime.now(beat.tzinfo) - beat).total_seconds() < STALE_SECONDS
