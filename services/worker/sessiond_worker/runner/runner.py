"""One run of a task: claims it, takes its ticket up, runs turns, is preempted, goes on, until the task's end.

    run(task id)      what an rq job calls, in a work-horse of its own

The order of every step is record, then act: a turn's key is in the record before its prompt is sent, and its outcome
before the lease is given back. So whatever is killed, the next run asks sessiond what became of that key
(`GET /turns?key=`) and never sends a prompt twice untold. It asks under its own lease: then no other run can send.
"""

import contextlib
import os
import secrets
import time
import uuid
from contextlib import ExitStack
from typing import Final

import redis
import structlog

from sessiond.client import Client, Lease, LeaseLost, ProblemError, Superseded, TicketEnded, Unavailable, connect
from sessiond_common.fault_points import append_in, hold_in
from sessiond_common.jobs.queue import connect as redis_connect
from sessiond_common.jobs.worker import TOLD, Stopped, broken_off, stopping
from sessiond_worker.runner import judge
from sessiond_worker.runner.conversation import Conversation
from sessiond_worker.settings import Settings, from_env
from sessiond_worker.tasks import machine as tk
from sessiond_worker.tasks.machine import Task
from sessiond_worker.tasks.run_lease import RunLease
from sessiond_worker.tasks.store import NoTask, RunLeaseLost, Tasks

log = structlog.get_logger("worker.runner")

REDIS_PATIENCE: Final = 60.0
"""Seconds that a record is tried to be written while Redis is away; then the run ends, and the task stands."""
BROKEN_RUNS: Final = 5
STOPPED: Final = "the worker was stopped"
FAULT_POINTS: Final = ("before-lease", "lease-granted", "turn-recorded", "in-turn", "result-received", "recorded")
"""before-lease: the run has its run lease; turn-recorded: the prompt is not sent yet; result-received: the result is
not recorded yet; recorded: the task has ended, its ticket is not given back yet."""


def run(task_id: str) -> None:
    """Runs the task until its end, or until the worker shall stop. Nothing when another run has it."""
    settings = from_env()
    connection = redis_connect(settings.redis_url)
    client = connect(settings.sessiond_url, settings.sessiond_key)
    with structlog.contextvars.bound_contextvars(task=task_id):
        Run(task_id, settings, connection, client).live()


class Run:
    """The life of one run. One thread, but for the claim's."""

    def __init__(self, task_id: str, settings: Settings, connection: "redis.Redis", client: Client) -> None:
        self.id = task_id
        self.settings = settings
        self.tasks = Tasks(connection)
        self.client = client
        self.token = f"run-{os.getpid()}-{secrets.token_hex(6)}"
        self.run_lease = RunLease(connection, task_id, self.token, settings.claim_ttl)
        self.task: Task
        self.ticket: str | None = None

    # ---- from its begin to its end -------------------------------------------------------------

    def live(self) -> None:
        """Everything. Raises what is a fault of ours, after it is recorded."""
        if not self.run_lease.acquire():
            log.info("another run has the task")
            return
        append_in(self.settings.hooks_dir, "runs", "begin", self.id, os.getpid(), time.monotonic())
        self.run_lease.keep(self._rung, self._run_lease_lost)
        try:
            self._guarded()
        finally:
            append_in(self.settings.hooks_dir, "runs", "end", self.id, os.getpid(), time.monotonic())
            self.run_lease.release()
        # A job that came for it while this run was still ending has found the claim, and is gone.
        self.tasks.revive_queued(self.id)

    def _guarded(self) -> None:
        try:
            self._begin()
        except NoTask:
            log.warning("there is no such task")
        except (Stopped, RunLeaseLost) as reason:
            log.info("the run ends early", why=type(reason).__name__)
        except Superseded:
            log.warning("another run waits on the task's ticket")
        except tk.Refused as refused:
            self._overtaken(refused)
        except Unavailable as failure:
            log.warning("sessiond is away, the task stands", error=str(failure))
        except (redis.ConnectionError, redis.TimeoutError) as error:
            log.warning("Redis is away, the task stands", error=str(error))
        except Exception as error:
            self._broke(error)
            raise

    def _begin(self) -> None:
        self.task = self.tasks.get(self.id)
        structlog.contextvars.bind_contextvars(session=self.task.session)
        if self.task.state not in tk.AT_WORK:
            self._give_back()
            return
        self.change(tk.Start(self.settings.budget))
        log.info("the run begins", run=self.task.runs, turn=self.task.turn and self.task.turn.key)
        if self._known_already():
            self._give_back()
            return
        hold_in(self.settings.hooks_dir, "before-lease")
        while not self._one_lease():
            log.info("waiting for the lease again", interruptions=self.task.interruptions.count)

    def change(self, *events: tk.Event, wake: bool = False) -> None:
        """Records, as the run that has the task; waits while Redis is away. Raises as Tasks.change does."""
        name, ends = uuid.uuid4().hex, time.monotonic() + REDIS_PATIENCE
        while True:
            try:
                self.task = self.tasks.change(self.id, *events, run=self.token, wake=wake, change=name)
                return
            except RunLeaseLost:
                # It may only have run out while Redis was away; its thread takes it again if nobody has.
                if not self.run_lease.acquire():
                    raise
            except (redis.ConnectionError, redis.TimeoutError):
                if time.monotonic() > ends or stopping().is_set():
                    raise
                time.sleep(0.2)

    # ---- one lease -----------------------------------------------------------------------------

    def _one_lease(self) -> bool:
        """From taking the ticket up to the lease's end; whether the task is over."""
        try:
            lease_over = self._leased()
        except TicketEnded as ended:
            self._ticket_ended(ended.reason)
            return False
        except LeaseLost as lost:
            log.info("the grant was lost before it was taken up", reason=lost.reason)
            return False
        return lease_over

    def _leased(self) -> bool:
        task, settings = self.task, self.settings
        with broken_off():
            ticket = self.client.take(task.session, kind="worker", key=task.id, patience=60.0)["id"]
            self.ticket = ticket
            structlog.contextvars.bind_contextvars(ticket=ticket)
        if ticket != task.ticket:
            self.change(tk.Queue(ticket))
        leasing = self.client.lease(
            task.session, kind="worker", key=task.id, holder=self.token, lease_ttl=settings.lease_ttl
        )
        with ExitStack() as stack:
            try:
                with broken_off():
                    lease = stack.enter_context(leasing)
            except Stopped:
                # Only waited: nothing was interrupted, the ticket keeps its place, somebody else may go on.
                self.change(wake=True)
                raise
            structlog.contextvars.bind_contextvars(fence=lease.fence)
            over = self._held(lease)
        if lease.lost_reason == "preempted":
            self.change(tk.Preempted((lease.fence,)))
        if over:
            self.change(tk.Released())
        return over

    def _held(self, lease: Lease) -> bool:
        """Turns under this lease; whether the task is over. The ticket keeps its place if it is not."""
        try:
            over = Conversation(self, lease).talk()
        except Stopped:
            if self.task.state not in tk.AT_WORK:
                return True  # its last turn ended before it could be cancelled
            lease.abandon()
            self.change(tk.Interrupt(STOPPED, self._stop_notice()), wake=True)
            raise
        except RunLeaseLost:
            lease.abandon()
            raise
        except (Unavailable, redis.ConnectionError, redis.TimeoutError) as failure:
            if isinstance(failure, Unavailable) and failure.type == "agent-broken":
                # Given back: to keep the place would keep the lease, for a turn that nobody can have.
                self.change(tk.Interrupt(f"the agent cannot run: {failure.reason}"), tk.Released())
            else:
                lease.abandon()
            raise
        if over:
            hold_in(self.settings.hooks_dir, "recorded")
            return True
        lease.abandon()
        why = judge.in_words(lease.lost_reason)
        log.info("interrupted", by=why)
        events: list[tk.Event] = [tk.Interrupt(why)]
        if lease.lost_reason == "preempted":
            events.append(tk.Preempted((lease.fence,)))
        self.change(*events)
        return False

    def _stop_notice(self) -> str | None:
        """What the next prompt tells of it; a turn that was cut says it by itself."""
        return None if self.task.turn is None else f"Between two of your turns {STOPPED} and started again."

    def _ticket_ended(self, reason: str) -> None:
        """Its cancel, an operator, or the rules ended it; unless the task is over, it takes a new place."""
        log.warning("the ticket has ended", reason=reason)
        self.change(tk.Released(), tk.Interrupt(f"its ticket ended: {reason}"))

    # ---- without a lease -------------------------------------------------------------------------

    def _known_already(self) -> bool:
        """Takes the result of a turn that closed while no run was there; whether the task is over by it."""
        return Conversation(self, None).settle()

    def _give_back(self) -> None:
        """Withdraws the ticket of a task that has ended, or stands still. Sessiond away: the sweep sees to it."""
        ticket = self.task.ticket or self.ticket
        if ticket is None:
            return
        with contextlib.suppress(ProblemError):  # gone already
            self.client.withdraw(self.task.session, ticket)
        self.change(tk.Released())
        log.info("the ticket is given back", state=self.task.state.value)

    def _overtaken(self, refused: tk.Refused) -> None:
        """Somebody changed the task under this run: a cancel, mostly."""
        log.info("the task went on without this run", why=str(refused))
        self.task = self.tasks.get(self.id)
        if self.task.state not in tk.AT_WORK:
            self._give_back()

    def _broke(self, error: Exception) -> None:
        """A fault of ours: the sweep tries again, but not for ever."""
        log.error("the run broke", error=str(error), exc_info=error)
        with contextlib.suppress(tk.Refused, RunLeaseLost, NoTask, redis.RedisError):
            self.change(tk.Broke(f"{type(error).__name__}: {error}"[:500]))
            if self.task.broken >= BROKEN_RUNS:
                self.change(tk.Fail(f"{BROKEN_RUNS} runs in a row broke: {self.task.reason}"))

    # ---- from the claim's thread -------------------------------------------------------------------

    def _rung(self) -> None:
        """A cancel: the ticket is withdrawn, which ends a wait, a lease and its turn alike, at once."""
        with contextlib.suppress(NoTask):
            task = self.tasks.get(self.id)
            if task.ended and task.ticket is not None:
                side = connect(self.settings.sessiond_url, self.settings.sessiond_key)
                with contextlib.suppress(ProblemError, Unavailable):
                    side.withdraw(task.session, task.ticket)
                side.close()

    def _run_lease_lost(self) -> None:
        stopping().set()
        os.kill(os.getpid(), TOLD)
