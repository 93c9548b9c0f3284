"""Job queues: rq as it is used here. A job only wakes somebody; the truth is always a record of ours.

Job ids are random: rq's id is no dedupe record (a repeated id enqueues twice, a finished job is forgotten).
Waking twice is harmless, because whoever is woken claims a record first. Arguments are JSON.
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
"""Woken: webhook.handler."""
POSTS: Final = "posts"
"""Woken: webhook.poster."""
TASKS: Final = "tasks"
"""Woken: worker.runner."""

FAILURE_TTL: Final = 86_400
MONITORING_SECONDS: Final = 5
"""How often a parent says that its work-horse still runs."""
STALE_SECONDS: Final = 4 * MONITORING_SECONDS
CALL_DEADLINE: Final = 5.0
CONNECTIONS: Final = 64


def connect(
    url: str, *, deadline: float = CALL_DEADLINE, retries: int = 2, connections: int = CONNECTIONS
) -> "redis.Redis":
    """A pool for records and jobs. Calls raise redis.ConnectionError or redis.TimeoutError within seconds.

    `deadline` in seconds bounds one attempt of a call. Callers beyond `connections` wait for one, as long at most.
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
        """The rq queue of this name."""
        if name not in self._queues:  # each asks the server for its version once
            self._queues[name] = Queue(name, connection=self._redis, serializer="json")
        return self._queues[name]

    def enqueue(self, name: str, function: str, *args: Any, pipeline: Any = None, at: datetime | None = None) -> str:
        """Wakes somebody: `function` is its dotted path, `args` JSON values. Returns the job's id.

        With `pipeline` nothing happens before that is executed; its `multi()` must have been called before any
        command was put into it, else rq calls it too late and redis-py raises RedisError. `at` (aware) delays the
        job, which needs a worker process with a scheduler.
        """
        queue = self.queue(name)
        job_id = f"{name}-{uuid.uuid4().hex}"
        options: dict[str, Any] = {
            "job_id": job_id, "timeout": -1, "result_ttl": 0, "failure_ttl": FAILURE_TTL,
            "description": f"{function} {' '.join(map(str, args))}",
        }  # fmt: skip
        if at is not None:
            job = queue.create_job(function, args=args, **options)
            # rq keeps whole seconds and cuts the rest off: the job would come up to a second before its time.
            queue.schedule_job(job, at + timedelta(seconds=1), pipeline=pipeline)
        else:
            queue.enqueue_call(function, args=args, pipeline=pipeline, **options)
        return job_id

    def live(self, job_id: str | None) -> bool:
        """Whether a job still will wake somebody: it is queued or scheduled, or its parent says that it runs."""
        job = self._fetch(job_id)
        if job is None:
            return False
        status = job.get_status(refresh=False)
        return self._waits(job) or (status in (JobStatus.QUEUED, JobStatus.STARTED) and self._fresh(job))

    def waiting(self, job_id: str | None) -> bool:
        """Whether a job is queued or scheduled and nobody has it yet: for records whose runs have claims."""
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
