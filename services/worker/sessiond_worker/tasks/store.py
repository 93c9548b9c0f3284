"""The durable store of tasks, in Redis. A record and the rq job that wakes a worker for it are one transaction.

    worker:task:{id}   the record (JSON); 30 days after the task's end it is gone
    worker:key:{key}   the id of the last task with this key (hashed): {name}-{generation}
    worker:all         every id by its time · worker:open: the ids for which a run has something to do
    worker:claim:{id}  the run that has the task, with a ttl · worker:bell:{id}: rings that run

Changes are WATCH, a pure decision (`task.decide`), MULTI, EXEC; whoever lost the race decides anew. For a caller that
wants a task inside a MULTI of its own:

    with redis.pipeline() as pipe:
        if tasks.living(pipe, new.key) is None:      # WATCHes the key's index; `pipe` answers at once until multi()
            pipe.multi()
            ...                                      # the caller's own commands
            task_id = tasks.stage(pipe, new)         # the same id each time until EXEC has made it
            pipe.execute()                           # WatchError: again from the start

All methods raise redis.ConnectionError or redis.TimeoutError while Redis is away; nothing half done is left.
"""

import contextlib
import hashlib
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import redis

from sessiond_common.clock import now_text
from sessiond_common.jobs.queue import TASKS, Jobs
from sessiond_worker.tasks import machine as tk
from sessiond_worker.tasks.machine import New, Refused, State, Task

RUN: Final = "sessiond_worker.runner.run"
KEPT: Final = 30 * 86_400
TITLE_LIMIT: Final = 300
TEXT_LIMIT: Final = 100_000
KEY_LIMIT: Final = 500
_SESSION: Final = re.compile(r"[a-z0-9._-]{1,100}/[a-z0-9._-]{1,100}")


class NoTask(LookupError):
    """There is no task with this id."""


class RunLeaseLost(Exception):
    """The task belongs to another run by now: this one may write no more."""


def task_key(task_id: str) -> str:
    """Where a record lies."""
    return f"worker:task:{task_id}"


def run_lease_key(task_id: str) -> str:
    """Where a run's claim lies: its token, with a ttl."""
    return f"worker:claim:{task_id}"


def bell_key(task_id: str) -> str:
    """A list; whatever is pushed wakes the run that has the task."""
    return f"worker:bell:{task_id}"


def index_key(key: str) -> str:
    """Where the id of the last task with this source key lies; hashed, because keys are any text."""
    return f"worker:key:{hashlib.sha256(key.encode()).hexdigest()}"


Found = list[Task]
ALL: Final = "worker:all"
OPEN: Final = "worker:open"


def checked(new: New) -> New:
    """The same, its session folded to lower case. Raises ValueError in one line."""
    session = new.session.lower()
    if not _SESSION.fullmatch(session) or {".", ".."} & set(session.split("/")):
        raise ValueError(f"a session is named owner/repo, of letters, digits and ._- : {new.session!r}")
    for name, text, limit in (
        ("key", new.key, KEY_LIMIT), ("title", new.title, TITLE_LIMIT), ("instructions", new.instructions, TEXT_LIMIT),
    ):  # fmt: skip
        if not text.strip() or len(text) > limit or "\x00" in text:
            raise ValueError(f"{name}: must have 1 to {limit} characters")
    budget = new.budget
    if any(bound is not None and bound <= 0 for bound in (budget.turns, budget.minutes, budget.usd)):
        raise ValueError("a budget's turns, minutes and US dollars must be above 0")
    return replace(new, session=session)


class Tasks:
    """The tasks of all sessions. Threads may share it."""

    def __init__(self, connection: "redis.Redis", jobs: Jobs | None = None) -> None:
        self.connection = connection
        self._redis: Any = connection
        self._jobs = jobs or Jobs(connection)

    def _pipeline(self) -> Any:
        return self._redis.pipeline()

    # ---- adding ------------------------------------------------------------------------------

    def add(self, new: New) -> Task:
        """A task, queued and with a job to wake a worker; a task of the same key that has not ended is returned as is.

        Raises ValueError for what no task can be made of.
        """
        new = checked(new)
        while True:
            with self._pipeline() as pipe:
                try:
                    known = self.living(pipe, new.key)
                    if known is not None:
                        return known
                    pipe.multi()
                    made = self.stage(pipe, new)
                    pipe.execute()
                except redis.WatchError:
                    continue
            return self.get(made)

    def living(self, pipe: Any, key: str) -> Task | None:
        """The task of this key that has not ended. WATCHes what `stage` relies on, so `multi()` comes after it."""
        pipe.watch(index_key(key))
        known = pipe.get(index_key(key))
        if known is None:
            return None
        pipe.watch(task_key(known.decode()))
        text = pipe.get(task_key(known.decode()))
        found = tk.loads(text) if text else None
        return None if found is None or found.ended else found

    def stage(self, pipe: Any, new: New) -> str:
        """Puts record, index and job into the caller's MULTI; the id. `living` must have been asked on the same pipe.

        The id is made of the key and of how many tasks the key had. Raises ValueError.
        """
        new = checked(new)
        # Not asked on `pipe`, which only collects by now; its WATCH says if this answer grows old before EXEC.
        before = self._redis.get(index_key(new.key))
        generation = int(before.decode().rpartition("-")[2]) + 1 if before else 1
        made = f"task-{hashlib.sha256(new.key.encode()).hexdigest()[:16]}-{generation}"
        at = now_text()
        job = self._wake(pipe, made)
        record = Task(
            id=made, key=new.key, session=new.session, title=new.title, instructions=new.instructions,
            source=new.source, asked_by=new.asked_by, budget=new.budget, created_at=at, updated_at=at,
            job=job,
        )  # fmt: skip
        self._put(pipe, record, newest=True)
        pipe.zadd(ALL, {made: time.time()})
        return made

    def _wake(self, pipe: Any, task_id: str) -> str:
        return self._jobs.enqueue(TASKS, RUN, task_id, pipeline=pipe)

    def _put(self, pipe: Any, task: Task, *, newest: bool) -> None:
        pipe.set(task_key(task.id), tk.dumps(task), ex=KEPT if task.ended else None)
        if newest:
            pipe.set(index_key(task.key), task.id, ex=KEPT if task.ended else None)
        if task.wants_run:
            pipe.sadd(OPEN, task.id)
        else:
            pipe.srem(OPEN, task.id)

    # ---- looking -----------------------------------------------------------------------------

    def get(self, task_id: str) -> Task:
        """One task. Raises NoTask."""
        text = self._redis.get(task_key(task_id))
        if text is None:
            raise NoTask(f"there is no task {task_id!r}")
        return tk.loads(text)

    def list(self, session: str | None = None, state: State | None = None) -> Found:
        """Tasks in the order in which they were added; only of a session, only in a state."""
        ids = [i.decode() for i in self._redis.zrange(ALL, 0, -1)]
        texts = self._redis.mget([task_key(i) for i in ids]) if ids else []
        found = [tk.loads(text) for text in texts if text is not None]
        return [
            t
            for t in found
            if (session is None or t.session == session.lower()) and (state is None or t.state is state)
        ]

    def has_run(self, task_id: str) -> bool:
        """Whether a run has this task now."""
        return bool(self._redis.exists(run_lease_key(task_id)))

    # ---- changing ----------------------------------------------------------------------------

    def change(
        self, task_id: str, *events: tk.Event, run: str | None = None, wake: bool = False, change: str | None = None
    ) -> Task:
        """The task after these events, as one step; `wake` makes a job for it in the same transaction.

        With `run` (a run's token) only while that run has the task. `change` names the step: asked again under the
        same name right after Redis was away, it is not done twice. Raises NoTask, RunLeaseLost, task.Refused.
        """
        return self._change(task_id, lambda task: events, run, wake=wake, change=change)

    def _change(
        self, task_id: str, events: Callable[[Task], tuple[tk.Event, ...]], run: str | None = None, *,
        wake: bool = False, ring: bool = False, change: str | None = None,
    ) -> Task:  # fmt: skip
        mine = change or uuid.uuid4().hex
        while True:
            with self._pipeline() as pipe:
                try:
                    pipe.watch(task_key(task_id), run_lease_key(task_id))
                    task = self._stored(pipe, task_id)
                    if task.change == mine:
                        return task  # its EXEC was done, only the answer was lost
                    if run is not None and pipe.get(run_lease_key(task_id)) != run.encode():
                        raise RunLeaseLost(task_id)
                    pipe.watch(index_key(task.key))
                    newest = pipe.get(index_key(task.key)) in (None, task_id.encode())
                    after = self._after(task, events(task), mine)
                    if task.ended and not after.ended and not newest:
                        raise Refused(task.state, "retry", "there is a newer task of the same key")
                    pipe.multi()
                    if wake:
                        after = tk.decide(after, tk.Job(self._wake(pipe, task_id)), after.updated_at)
                    self._put(pipe, after, newest=newest)
                    if ring:
                        pipe.rpush(bell_key(task_id), "look")
                        pipe.expire(bell_key(task_id), 60)
                    pipe.execute()
                except redis.WatchError:
                    continue
                return after

    @staticmethod
    def _stored(pipe: Any, task_id: str) -> Task:
        text = pipe.get(task_key(task_id))
        if text is None:
            raise NoTask(f"there is no task {task_id!r}")
        return tk.loads(text)

    @staticmethod
    def _after(task: Task, events: tuple[tk.Event, ...], change: str) -> Task:
        at = now_text()
        for event in events:
            task = tk.decide(task, event, at)
        return replace(task, change=change)

    def cancel(self, task_id: str, by: str = "") -> Task:
        """It ends; a run that has it stops at once. Raises NoTask, task.Refused (it has ended)."""
        # The job gives the ticket back when no run has the task.
        return self._change(task_id, lambda task: (tk.Cancel(by),), wake=True, ring=True)

    def retry(self, task_id: str, by: str = "") -> Task:
        """An ended or stuck task is queued again, with its budgets whole. Raises NoTask, task.Refused.

        Refused too when there is a newer task of the same key: retry that one.
        """
        return self._change(task_id, lambda task: (tk.Retry(by),), wake=True)

    def wake(self, session: str, number: int | None = None, why: str = "a person wrote in this conversation") -> Found:
        """Stuck tasks of the session (with `number`: of that issue or pull request) are queued again; those tasks.

        `why` is told to the agent. A task that is no longer stuck when its turn comes is left as it is.
        """
        woken = []
        for task in self.list(session, State.STUCK):
            if number is None or task.source.number == number:
                try:
                    woken.append(self._change(task.id, lambda task: (tk.Wake(why),), wake=True))
                except Refused:
                    continue
        return woken

    def revive(self) -> tuple[str, ...]:
        """Makes a job for every task that wants a run, has no claim and no job that waits; their ids. The sweep.

        A job that runs is not asked: its run's claim is the better witness. One too many finds the claim, and ends.
        """
        revived = []
        for task_id in sorted(i.decode() for i in self._redis.smembers(OPEN)):
            try:
                task = self.get(task_id)
            except NoTask:
                self._redis.srem(OPEN, task_id)
                continue
            if task.wants_run and not self.has_run(task_id) and not self._jobs.waiting(task.job):
                self._change(task_id, lambda task: (), wake=True)
                revived.append(task_id)
        return tuple(revived)

    def revive_queued(self, task_id: str) -> None:
        """The same for one task, if it is queued: anything else is left to the sweep and its pace."""
        with contextlib.suppress(NoTask):
            task = self.get(task_id)
            if task.state is State.QUEUED and not self.has_run(task_id) and not self._jobs.waiting(task.job):
                self._change(task_id, lambda task: (), wake=True)
