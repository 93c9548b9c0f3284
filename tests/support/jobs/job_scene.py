"""A queue of test jobs (`standins/sample_jobs.py`), and the parent process of rq as this project runs it."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from rq.job import Job

from sessiond_common.jobs.queue import STALE_SECONDS, Jobs, connect
from support.servers import TESTS, Redis, eventually, kill_left

QUEUE = "sample_jobs"
CODE = (
    "import sys; from sessiond_common.jobs.worker import serve; "
    "sys.exit(serve(*sys.argv[1:3], scheduler=sys.argv[3:] == ['s']))"
)


class Parent:
    """A parent process of rq, as this project runs it."""

    def __init__(self, url: str, place: Path, *words: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(TESTS / "support" / "standins")}
        self.log = place / "parent.log"
        with self.log.open("ab") as log:
            command = [sys.executable, "-c", CODE, QUEUE, url, *words]
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        self._horses: list[psutil.Process] = []

    def horse(self) -> psutil.Process:
        found = eventually(lambda: psutil.Process(self.process.pid).children(), 10, self.log.read_text())[0]
        self._horses.append(found)
        return found

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self._horses += psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
        kill_left(self._horses)


class JobScene:
    """The queue, and the file in which the jobs record what they do."""

    def __init__(self, server: Redis, place: Path) -> None:
        self.server, self.place = server, place
        self.redis: Any = connect(server.url)
        self.jobs = Jobs(self.redis)
        self.record = place / "record"
        self.go = place / "go"

    def enqueue(self, name: str, *args: object, **more: Any) -> str:
        return self.jobs.enqueue(QUEUE, f"sample_jobs.{name}", str(self.record), *args, **more)

    def waiting_job(self) -> str:
        """Enqueue a job that runs until the file `go` exists."""
        return self.enqueue("wait", str(self.go))

    def reported(self, word: str, seconds: float = 10) -> list[str]:
        def look() -> list[str]:
            lines = self.record.read_text().splitlines() if self.record.exists() else []
            return [text for text in lines if text.startswith(word)]

        return list(eventually(look, seconds, word))

    def job(self, job_id: str) -> Job:
        return Job.fetch(job_id, connection=self.redis, serializer="json")

    def age(self, job_id: str) -> None:
        """Make the job's last heartbeat older than `STALE_SECONDS`."""
        old = (datetime.now(UTC) - timedelta(seconds=STALE_SECONDS + 5)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        for name in ("last_heartbeat", "enqueued_at"):
            self.redis.hset(f"rq:job:{job_id}", name, old)
