"""One run of a task: acquire its run lease, take its ticket, wait for the lease, run turns, until the task is over.

    run(task_id)      what an rq job calls, in a work-horse of its own

The order of every step is record, then act: the record has a turn's key before its prompt is sent, and the turn's
outcome before the lease is released. After a crash, the next run asks sessiond how the turn with that key ended
(`GET /turns?key=`). So a prompt that is sent twice says so. The run asks under a lease of its own, because no other run
can send then.
"""

import contextlib
import os
import secrets
import time
from contextlib import ExitStack
from typing import Final

import redis
import structlog

from sessiond.client import Client, Lease, LeaseLost, ProblemError, Superseded, TicketEnded, Unavailable, connect
from sessiond_common.fault_points import append_in, hold_in
from sessiond_common.jobs.queue import connect as redis_connect
from sessiond_common.jobs.worker import Stopped, interruptible, stop_self
from sessiond_worker.runner import judge
from sessiond_worker.runner.conversation import Conversation
from sessiond_worker.runner.recorder import TaskRecorder
from sessiond_worker.settings import Settings, from_env
from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks.machine import TaskRefused
from sessiond_worker.tasks.model import AT_WORK, Task
from sessiond_worker.tasks.run_lease import RunLease
from sessiond_worker.tasks.store import NoTask, RunLeaseLost, Tasks

log = structlog.get_logger("worker.runner")

BROKEN_RUNS: Final = 5
"""Runs in a row that end with an unexpected error before the task fails."""
TICKET_PATIENCE: Final = 60.0
"""A run that takes the task's ticket waits at most this many seconds for sessiond."""
STOPPED: Final = "the worker was stopped"
FAULT_POINTS: Final = ("before-lease", "lease-granted", "turn-recorded", "in-turn", "result-received", "recorded")
"""before-lease: the run has its run lease; turn-recorded: the prompt is not sent yet; result-received: the result is
not recorded yet; recorded: the task has ended, its ticket is not given back yet."""


def run(task_id: str) -> None:
    """Run the task until it is over or the worker stops. Does nothing when another run has it."""
    settings = from_env()
    connection = redis_connect(settings.redis_url)
    client = connect(settings.sessiond_url, settings.sessiond_key)
    with structlog.contextvars.bound_contextvars(task=task_id):
        Run(task_id, settings, connection, client).run()


class Run:
    """One run, in the main thread of its work-horse; the run lease has a thread of its own."""

    def __init__(self, task_id: str, settings: Settings, connection: "redis.Redis", client: Client) -> None:
        self._id, self._settings, self._client = task_id, settings, client
        self._token = f"run-{os.getpid()}-{secrets.token_hex(6)}"
        self._tasks = Tasks(connection)
        self._run_lease = RunLease(connection, task_id, self._token, settings.run_lease_ttl)
        self._recorder = TaskRecorder(self._tasks, self._run_lease)
        self._ticket: str | None = None

    @property
    def _task(self) -> Task:
        return self._recorder.task

    # ---- from its begin to its end -------------------------------------------------------------

    def run(self) -> None:
        """Run the task. Raises unexpected errors after they are recorded."""
        if not self._run_lease.acquire():
            log.info("another run has the task")
            return
        append_in(self._settings.hooks_dir, "runs", "begin", self._id, os.getpid(), time.monotonic())
        self._run_lease.keep(self._withdraw_if_ended, stop_self)
        try:
            self._guarded()
        finally:
            append_in(self._settings.hooks_dir, "runs", "end", self._id, os.getpid(), time.monotonic())
            self._run_lease.release()
        # A job that started while this run was ending has found the run lease and ended.
        self._tasks.revive_queued(self._id)

    def _guarded(self) -> None:
        try:
            self._work()
        except NoTask:
            log.warning("there is no such task; it may have been deleted 30 days after its end")
        except (Stopped, RunLeaseLost) as reason:
            log.info("the run ends early", why=type(reason).__name__)
        except Superseded:
            log.warning("another run waits on the task's ticket")
        except TaskRefused as refused:
            self._accept_other_change(refused)
        except Unavailable as failure:
            log.warning("cannot reach sessiond; the next sweep continues the task", error=str(failure))
        except (redis.ConnectionError, redis.TimeoutError) as error:
            log.warning("cannot reach Redis; the next sweep continues the task", error=str(error))
        except Exception as error:
            self._record_error(error)
            raise

    def _work(self) -> None:
        task = self._recorder.load()
        structlog.contextvars.bind_contextvars(session=task.session)
        if task.state not in AT_WORK:
            self._give_back()
            return
        self._recorder.change(ev.Start(self._settings.budget))
        log.info("the run begins", run=self._task.runs, turn=self._task.turn and self._task.turn.key)
        # A turn may have closed while there was no run.
        if self._conversation(None).settle():
            self._give_back()
            return
        hold_in(self._settings.hooks_dir, "before-lease")
        while not self._one_lease():
            log.info("waiting for the lease again", interruptions=self._task.interruptions.count)

    def _conversation(self, lease: Lease | None) -> Conversation:
        return Conversation(self._recorder, self._client, self._settings, lease)

    # ---- one lease -----------------------------------------------------------------------------

    def _one_lease(self) -> bool:
        """Wait for a lease and work under it. Returns whether the task is over."""
        try:
            return self._work_with_lease()
        except TicketEnded as ended:
            # A cancel, an operator or a rule ended the ticket. Unless the task is over, the run takes a new one.
            log.warning("the ticket has ended", reason=ended.reason)
            self._recorder.change(ev.Released(), ev.Interrupt(f"its ticket ended: {ended.reason}"))
        except LeaseLost as lost:
            log.info("the lease was lost before the grant was confirmed", reason=lost.reason)
        return False

    def _work_with_lease(self) -> bool:
        self._take_ticket()
        leasing = self._client.lease(
            self._task.session, kind="worker", key=self._task.id, holder=self._token, lease_ttl=self._settings.lease_ttl
        )
        with ExitStack() as stack:
            try:
                with interruptible():
                    lease = stack.enter_context(leasing)
            except Stopped:
                # Nothing was interrupted, and the ticket keeps its place. Another run may continue.
                self._recorder.change(wake=True)
                raise
            structlog.contextvars.bind_contextvars(fence=lease.fence)
            over = self._work_under(lease)
        if lease.lost_reason == "preempted":
            self._recorder.change(ev.Preempted((lease.fence,)))
        if over:
            self._recorder.change(ev.Released())
        return over

    def _take_ticket(self) -> None:
        task = self._task
        with interruptible():
            ticket = self._client.take(task.session, kind="worker", key=task.id, patience=TICKET_PATIENCE)["id"]
            self._ticket = ticket
            structlog.contextvars.bind_contextvars(ticket=ticket)
        if ticket != task.ticket:
            self._recorder.change(ev.Queue(ticket))

    def _work_under(self, lease: Lease) -> bool:
        """Run turns under this lease. Returns whether the task is over; if it is not, the ticket keeps its place."""
        try:
            over = self._conversation(lease).run_turns()
        except Stopped:
            if self._task.state not in AT_WORK:
                return True  # its last turn ended before it could be cancelled
            lease.abandon()
            self._recorder.change(ev.Interrupt(STOPPED, self._stop_notice()), wake=True)
            raise
        except RunLeaseLost:
            lease.abandon()
            raise
        except (Unavailable, redis.ConnectionError, redis.TimeoutError) as failure:
            self._abandon_or_release(lease, failure)
            raise
        if over:
            hold_in(self._settings.hooks_dir, "recorded")
            return True
        self._record_loss(lease)
        return False

    def _abandon_or_release(self, lease: Lease, failure: Exception) -> None:
        """Let the lease expire, so that the ticket keeps its place. If the agent is broken, release it instead."""
        if isinstance(failure, Unavailable) and failure.type == "agent-broken":
            # If the ticket kept its place, others would wait for a turn that cannot run.
            self._recorder.change(ev.Interrupt(f"the agent cannot run: {failure.reason}"), ev.Released())
        else:
            lease.abandon()

    def _record_loss(self, lease: Lease) -> None:
        lease.abandon()
        why = judge.in_words(lease.lost_reason)
        log.info("interrupted", by=why)
        events: list[ev.Event] = [ev.Interrupt(why)]
        if lease.lost_reason == "preempted":
            events.append(ev.Preempted((lease.fence,)))
        self._recorder.change(*events)

    def _stop_notice(self) -> str | None:
        """Return the notice about the stop. None if a turn was open before: the notice about the cut turn says it."""
        return None if self._task.turn is None else f"Between two of your turns {STOPPED} and started again."

    # ---- without a lease -------------------------------------------------------------------------

    def _give_back(self) -> None:
        """Withdraw the ticket of a task that has ended or is stuck. Without sessiond, the next sweep does it."""
        ticket = self._task.ticket or self._ticket
        if ticket is None:
            return
        with contextlib.suppress(ProblemError):  # it has ended already
            self._client.withdraw(self._task.session, ticket)
        self._recorder.change(ev.Released())
        log.info("the ticket is given back", state=self._task.state.value)

    def _accept_other_change(self, refused: TaskRefused) -> None:
        """End the run, because somebody else changed the task during it, usually by a cancel."""
        log.info("somebody else changed the task", why=str(refused))
        if self._recorder.load().state not in AT_WORK:
            self._give_back()

    def _record_error(self, error: Exception) -> None:
        """Record an unexpected error. The next sweep tries again, at most `BROKEN_RUNS` times in a row."""
        log.error("the run failed with an unexpected error", error=str(error), exc_info=error)
        with contextlib.suppress(TaskRefused, RunLeaseLost, NoTask, redis.RedisError):
            self._recorder.change(ev.Broke(f"{type(error).__name__}: {error}"[:500]))
            if self._task.broken >= BROKEN_RUNS:
                self._recorder.change(ev.Fail(f"{BROKEN_RUNS} runs in a row broke: {self._task.reason}"))

    # ---- in the run lease's thread -----------------------------------------------------------------

    def _withdraw_if_ended(self) -> None:
        """After a cancel, withdraw the ticket, which ends a wait, or a lease and its turn, at once."""
        with contextlib.suppress(NoTask):
            task = self._tasks.get(self._id)
            if task.ended and task.ticket is not None:
                side = connect(self._settings.sessiond_url, self._settings.sessiond_key)
                with contextlib.suppress(ProblemError, Unavailable):
                    side.withdraw(task.session, task.ticket)
                side.close()
