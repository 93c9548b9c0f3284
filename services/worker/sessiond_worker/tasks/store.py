"""The durable store of tasks, in Redis. A record and the rq job that wakes a worker for it are one transaction.

    worker:task:{id}   the record (JSON); deleted 30 days after the task's end
    worker:key:{key}   the id of the last task with this key (hashed): {name}-{generation}
    worker:all         every id by its time
    worker:open        the ids for which a run has something to do
    worker:claim:{id}  the run lease: the token of the run that has the task, with a time to live
    worker:bell:{id}   a list; an entry wakes that run

A change is WATCH, a pure decision (`machine.decide`), MULTI, EXEC. If another change came first, it is decided again.
A caller that wants to add a task within a MULTI of its own does this:

    with redis.pipeline() as pipe:
        if tasks.find_active(pipe, new.key) is None: # WATCHes the key's index; `pipe` answers at once until multi()
            pipe.multi()
            ...                                      # the caller's own commands
            task_id = tasks.stage(pipe, new)         # the same id each time until EXEC has made the task
            pipe.execute()                           # on WatchError: again from the start

All methods raise redis.ConnectionError or redis.TimeoutError while Redis is away. A change is never half done.
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
from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks import machine
from sessiond_worker.tasks.machine import TaskRefused
from sessiond_worker.tasks.model import NewTask, Task, TaskState, dumps, loads

RUN: Final = "sessiond_worker.runner.run"
KEPT_SECONDS: Final = 30 * 86_400
BELL_SECONDS: Final = 60
TITLE_LIMIT: Final = 300
TEXT_LIMIT: Final = 100_000
KEY_LIMIT: Final = 500
ALL: Final = "worker:all"
OPEN: Final = "worker:open"
_SESSION: Final = re.compile(r"[a-z0-9._-]{1,100}/[a-z0-9._-]{1,100}")
_Found = list[Task]


class NoTask(LookupError):
    """There is no task with this id."""


class RunLeaseLost(Exception):
    """Another run holds the task's run lease, so this run must not change the task any more."""


def task_key(task_id: str) -> str:
    """Return the Redis key of a record."""
    return f"worker:task:{task_id}"


def run_lease_key(task_id: str) -> str:
    """Return the Redis key of a run lease: the run's token, with a time to live."""
    return f"worker:claim:{task_id}"


def bell_key(task_id: str) -> str:
    """Return the Redis key of a task's bell: a list whose entries wake the run that has the task."""
    return f"worker:bell:{task_id}"


def index_key(key: str) -> str:
    """Return the Redis key with the id of the last task of this key. Keys may be any text, so it has their hash."""
    return f"worker:key:{hashlib.sha256(key.encode()).hexdigest()}"


def checked(new: NewTask) -> NewTask:
    """Return the same task with its session in lower case.

    Raises:
        ValueError: `new` is not a valid task; the text is one line.
    """
    session = new.session.lower()
    if not _SESSION.fullmatch(session) or {".", ".."} & set(session.split("/")):
        raise ValueError(f"session: must be owner/repo, of letters, digits and ._- : {new.session!r}")
    for name, text, limit in (
        ("key", new.key, KEY_LIMIT), ("title", new.title, TITLE_LIMIT), ("instructions", new.instructions, TEXT_LIMIT),
    ):  # fmt: skip
        if not text.strip() or len(text) > limit or "\x00" in text:
            raise ValueError(f"{name}: must have 1 to {limit} characters and no NUL")
    budget = new.budget
    if any(bound is not None and bound <= 0 for bound in (budget.turns, budget.minutes, budget.usd)):
        raise ValueError("budget: turns, minutes and US dollars must be above 0")
    return replace(new, session=session)


class Tasks:
    """The tasks of all sessions. Thread-safe."""

    def __init__(self, connection: "redis.Redis", jobs: Jobs | None = None) -> None:
        self.connection = connection
        self._redis: Any = connection
        self._jobs = jobs or Jobs(connection)

    def _pipeline(self) -> Any:
        return self._redis.pipeline()

    # ---- adding ------------------------------------------------------------------------------

    def add(self, new: NewTask) -> Task:
        """Add a task in the state `queued`, and a job that wakes a worker. Returns the task.

        If a task with the same key has not ended, that one is returned and nothing changes.

        Raises:
            ValueError: `new` is not a valid task; the text is one line.
        """
        new = checked(new)
        while True:
            with self._pipeline() as pipe:
                try:
                    known = self.find_active(pipe, new.key)
                    if known is not None:
                        return known
                    pipe.multi()
                    made = self.stage(pipe, new)
                    pipe.execute()
                except redis.WatchError:
                    continue
            return self.get(made)

    def find_active(self, pipe: Any, key: str) -> Task | None:
        """Return the task of this key that has not ended. WATCHes what `stage` reads; call `multi()` after it."""
        pipe.watch(index_key(key))
        known = pipe.get(index_key(key))
        if known is None:
            return None
        pipe.watch(task_key(known.decode()))
        text = pipe.get(task_key(known.decode()))
        found = loads(text) if text else None
        return None if found is None or found.ended else found

    def stage(self, pipe: Any, new: NewTask) -> str:
        """Put record, index and job into the caller's MULTI. Returns the id. Call `find_active` on the same pipe first.

        The id has the key's hash and the number of this task among the tasks of the key.

        Raises:
            ValueError: `new` is not a valid task; the text is one line.
        """
        new = checked(new)
        # Not read through `pipe`, which only collects commands after multi(). Its WATCH detects a later change.
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
        pipe.set(task_key(task.id), dumps(task), ex=KEPT_SECONDS if task.ended else None)
        if newest:
            pipe.set(index_key(task.key), task.id, ex=KEPT_SECONDS if task.ended else None)
        if task.wants_run:
            pipe.sadd(OPEN, task.id)
        else:
            pipe.srem(OPEN, task.id)

    # ---- reading -----------------------------------------------------------------------------

    def get(self, task_id: str) -> Task:
        """Return one task.

        Raises:
            NoTask: there is no task with this id.
        """
        text = self._redis.get(task_key(task_id))
        if text is None:
            raise NoTask(f"there is no task {task_id!r}")
        return loads(text)

    def list(self, session: str | None = None, state: TaskState | None = None) -> _Found:
        """Return the tasks with this session and this state (None: any), in the order in which they were added."""
        ids = [i.decode() for i in self._redis.zrange(ALL, 0, -1)]
        texts = self._redis.mget([task_key(i) for i in ids]) if ids else []
        found = [loads(text) for text in texts if text is not None]
        return [
            task
            for task in found
            if (session is None or task.session == session.lower()) and (state is None or task.state is state)
        ]

    def has_run(self, task_id: str) -> bool:
        """Return whether a run holds the run lease of this task now."""
        return bool(self._redis.exists(run_lease_key(task_id)))

    # ---- changing ----------------------------------------------------------------------------

    def change(
        self, task_id: str, *events: ev.Event, run: str | None = None, wake: bool = False, change: str | None = None
    ) -> Task:
        """Apply events as one change. Returns the task after it.

        With `run`, a run's token, the change is made only while that run holds the run lease. `wake` makes a job for
        the task in the same transaction. `change` names the change: a change that is repeated with the same name
        after an outage of Redis takes effect once.

        Raises:
            NoTask: there is no task with this id.
            RunLeaseLost: another run has the task.
            TaskRefused: the task's state does not accept an event; nothing has changed.
        """
        return self._change(task_id, lambda task: events, run, wake=wake, change=change)

    def _change(
        self, task_id: str, events: Callable[[Task], tuple[ev.Event, ...]], run: str | None = None, *,
        wake: bool = False, ring: bool = False, change: str | None = None,
    ) -> Task:  # fmt: skip
        mine = change or uuid.uuid4().hex
        while True:
            with self._pipeline() as pipe:
                try:
                    pipe.watch(task_key(task_id), run_lease_key(task_id))
                    task = self._stored(pipe, task_id)
                    if task.change == mine:
                        return task  # EXEC was done; only its answer was lost
                    if run is not None and pipe.get(run_lease_key(task_id)) != run.encode():
                        raise RunLeaseLost(task_id)
                    pipe.watch(index_key(task.key))
                    newest = pipe.get(index_key(task.key)) in (None, task_id.encode())
                    after = self._after(task, events(task), mine)
                    if task.ended and not after.ended and not newest:
                        raise TaskRefused(task.state, "retry", "there is a newer task of the same key")
                    pipe.multi()
                    if wake:
                        after = machine.decide(after, ev.Job(self._wake(pipe, task_id)), after.updated_at)
                    self._put(pipe, after, newest=newest)
                    if ring:
                        pipe.rpush(bell_key(task_id), "look")
                        pipe.expire(bell_key(task_id), BELL_SECONDS)
                    pipe.execute()
                except redis.WatchError:
                    continue
                return after

    @staticmethod
    def _stored(pipe: Any, task_id: str) -> Task:
        text = pipe.get(task_key(task_id))
        if text is None:
            raise NoTask(f"there is no task {task_id!r}")
        return loads(text)

    @staticmethod
    def _after(task: Task, events: tuple[ev.Event, ...], change: str) -> Task:
        at = now_text()
        for event in events:
            task = machine.decide(task, event, at)
        return replace(task, change=change)

    def cancel(self, task_id: str, by: str = "") -> Task:
        """End the task; a run that has it stops at once.

        Raises:
            NoTask: there is no task with this id.
            TaskRefused: it has ended already.
        """
        # If no run has the task, the new job withdraws the ticket.
        return self._change(task_id, lambda task: (ev.Cancel(by),), wake=True, ring=True)

    def retry(self, task_id: str, by: str = "") -> Task:
        """Queue an ended or stuck task again, with its whole budget.

        Raises:
            NoTask: there is no task with this id.
            TaskRefused: it has not ended and is not stuck, or there is a newer task of the same key.
        """
        return self._change(task_id, lambda task: (ev.Retry(by),), wake=True)

    def wake(self, session: str, number: int | None = None, why: str = "a person wrote in this conversation") -> _Found:
        """Queue the session's stuck tasks again. With `number`, queue only those of that issue or pull request.

        `why` is part of the next prompt. Returns the tasks that were queued. A task that has just left `stuck` does
        not change.
        """
        woken = []
        for task in self.list(session, TaskState.STUCK):
            if number is None or task.source.number == number:
                try:
                    woken.append(self._change(task.id, lambda task: (ev.Wake(why),), wake=True))
                except TaskRefused:
                    continue
        return woken

    def revive(self) -> tuple[str, ...]:
        """Make a job for every task that wants a run and has neither a run nor a waiting job. Returns their ids.

        Jobs that have begun do not count, because the run lease shows whether their run still works. An extra job
        finds the run lease and ends.
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
        """Make a job for this task if it is queued and has no run and no job. A sweep handles all other states."""
        with contextlib.suppress(NoTask):
            task = self.get(task_id)
            if task.state is TaskState.QUEUED and not self.has_run(task_id) and not self._jobs.waiting(task.job):
                self._change(task_id, lambda task: (), wake=True)
