"""Real workers for tests: `python -m sessiond_worker`, tasks, scripts, and the prompts that the agent received."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import redis

from sessiond_common.jobs.queue import Jobs, connect
from sessiond_worker.tasks.model import ENDS, NewTask, Task, TaskSource, TaskState
from sessiond_worker.tasks.store import Tasks
from support.servers import Redis, Sessiond, eventually, kill_left, scripted_env

SESSION = "octo/hello"
QUICK = {
    "WORKER_SWEEP_SECONDS": "0.5",
    "WORKER_CLAIM_SECONDS": "1.5",
    "SESSIOND_LEASE_TTL": "3",
    "WORKER_RETRY_SECONDS": "0.1",
    "WORKER_BROKEN_SECONDS": "1",
}
SETTLED = (*ENDS, TaskState.STUCK)
REPEATED = re.compile(r"Turn (\d+) \(attempt (\d+)\) was sent to you before")
SENT = re.compile(r"turn (\d+)(?:, attempt (\d+))? of task (\S+?)\.")


def unannounced_repeats(prompts: list[str]) -> list[str]:
    """Return the prompts that repeat an earlier attempt of a turn but do not mention it."""
    seen: dict[tuple[str, str], list[int]] = {}
    found = []
    for prompt in prompts:
        sent = SENT.search(prompt)
        if sent is None:
            continue
        number, attempt, task = sent[1], int(sent[2] or 1), sent[3]
        before = seen.setdefault((task, number), [])
        announced = {int(a) for n, a in REPEATED.findall(prompt) if n == number}
        if not set(before) <= announced:
            found.append(prompt)
        before.append(attempt)
    return found


def service_env(*faults: str, **times: float) -> dict[str, str]:
    """Return the environment of a sessiond whose times fit QUICK."""
    return scripted_env(*faults, **{"lease_ttl": 3, "head_wait": 0.3, "claim_window": 2, **times})


def line(outcome: str, note: str = "", **steering: str) -> str:
    """Return one turn of a script, which answers with this outcome."""
    steps = {**steering, "say": json.dumps({"outcome": outcome, "note": note})}
    return ";".join(f"{name}={value}" for name, value in steps.items())


class Worker:
    """`python -m sessiond_worker`: the supervisor, its child (the parent of rq), and the work-horse of that child."""

    def __init__(self, redis_url: str, service: Sessiond, place: Path, env: Mapping[str, str] | None = None) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.hooks = place / "hooks"
        self.hooks.mkdir(exist_ok=True)
        self._log = place / "worker.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SESSIOND_", "WORKER_", "TASK_", "REDIS_"))}
        self.env = {
            **kept, "REDIS_URL": redis_url, "SESSIOND_URL": service.url,
            "SESSIOND_KEY": service.keys["worker"], "WORKER_HOOKS_DIR": str(self.hooks), **QUICK, **(env or {}),
        }  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sessiond_worker"], env=self.env, stdout=log, stderr=log
            )

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")[-6000:]

    def remember(self) -> None:
        """Record the processes that run now, so that `close` finds orphans."""
        if self.process.poll() is None:
            top = psutil.Process(self.process.pid)
            self._seen |= {p.pid: p for p in [top, *top.children(recursive=True)]}

    def parent(self) -> psutil.Process:
        """Return rq's parent."""

        def look() -> psutil.Process | None:
            self.remember()
            found = [p for p in psutil.Process(self.process.pid).children() if p.status() != psutil.STATUS_ZOMBIE]
            return found[0] if found and "jobs" in found[0].cmdline() else None

        return eventually(look, 10, self.log_text())

    def horse(self) -> psutil.Process:
        """Return the work-horse."""

        def look() -> psutil.Process | None:
            found = [p for p in self.parent().children() if p.status() != psutil.STATUS_ZOMBIE]
            return found[0] if found else None

        return eventually(look, 10, self.log_text())

    # ---- fault points

    def hold(self, point: str) -> None:
        (self.hooks / f"{point}.hold").touch()

    def wait_until_reached(self, point: str, seconds: float = 20) -> int:
        """Wait until a run has reached the fault point. Returns its pid."""
        found = self.hooks / f"{point}.reached"
        eventually(lambda: found.exists() and found.read_text(), seconds, f"{point}: {self.log_text()}")
        return int(found.read_text())

    def release(self, point: str) -> None:
        (self.hooks / f"{point}.hold").unlink(missing_ok=True)
        (self.hooks / f"{point}.reached").unlink(missing_ok=True)

    def runs(self) -> list[tuple[str, str, int]]:
        """Return (begin or end, task, pid) for every run so far."""
        try:
            words = [text.split() for text in (self.hooks / "runs").read_text().splitlines()]
        except FileNotFoundError:
            return []
        return [(word, task, int(pid)) for word, task, pid, _ in words]

    # ---- the end

    def terminate(self, seconds: float = 20) -> int:
        self.remember()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.terminate(40)
        kill_left(self._seen.values())


class Scene:
    """Redis, sessiond, a worker and its tasks."""

    def __init__(self, redis_server: Redis, service: Sessiond, worker: Worker, place: Path) -> None:
        self.redis_server, self.service, self.worker, self.place = redis_server, service, worker, place
        self.connection: redis.Redis = connect(redis_server.url)
        self.jobs = Jobs(self.connection)
        self.tasks = Tasks(self.connection, self.jobs)
        self.client = service.client()
        self._scripts = 0

    def script(self, *lines: str) -> str:
        """Return instructions whose turns follow these lines."""
        self._scripts += 1
        path = self.place / f"script-{self._scripts}"
        path.write_text("\n".join(lines) + "\n")
        return f"Do what the script says.\n#script {path}"

    def add(self, *lines: str, key: str = "k1", **more: Any) -> Task:
        given: dict[str, Any] = {"session": SESSION, "title": "A task", "source": TaskSource("cli"), **more}
        return self.tasks.add(NewTask(key=key, instructions=self.script(*lines), **given))

    def wait_for_end(self, task: Task | str, seconds: float = 30, states: tuple[TaskState, ...] = SETTLED) -> Task:
        """Wait until the task has ended or is stuck and has no ticket. Returns the task."""
        task_id = task if isinstance(task, str) else task.id

        def look() -> Task | None:
            found = self.tasks.get(task_id)
            return found if found.state in states and found.ticket is None else None

        return eventually(look, seconds, f"{task_id} settled: {self.tasks.get(task_id)}\n{self.worker.log_text()}")

    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while page := self.client.ledger(SESSION, found[-1]["id"] if found else None):
            found += page
        return found

    def prompts(self) -> list[str]:
        """Return every prompt that the agent began, in order."""
        found = []
        for path in sorted(self.service.state.glob("claude/projects/scripted/*.jsonl")):
            found += [json.loads(text) for text in path.read_text().splitlines()]
        return found

    def handler(self, key: str, prompt: str = "A comment.\n#say the answer") -> None:
        """Run one turn under a handler's lease, as for a person's comment."""
        with self.client.lease(SESSION, kind="handler", key=key, lease_ttl=3) as lease:
            assert lease.turn(prompt).result().completed

    def in_turn(self, number: int = 1) -> None:
        """Wait until the worker's turn with this number has begun."""

        def begun() -> bool:
            entries = self.entries()
            keys = {e["turn"]: str(e["key"]) for e in entries if e["event"] == "turn-accepted"}
            started = [keys[e["turn"]] for e in entries if e["event"] == "turn-started"]
            return any(key.split(":")[1:2] == [str(number)] for key in started)

        eventually(begun, 20, f"turn {number} started: {self.worker.log_text()}")
