"""The turns of one lease: what is sent, what became of it, and how long to wait before the next."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from sessiond.client import AgentEvent, Lease, LeaseLost, ProblemError, TurnResult, Unavailable
from sessiond.client.retry import Backoff
from sessiond_common.clock import parse_time
from sessiond_common.fault_points import hold_in
from sessiond_common.jobs.worker import Stopped, broken_off, stopping
from sessiond_worker.runner import job_metrics, judge, ledger_gap, prompts
from sessiond_worker.runner.judge import Ended
from sessiond_worker.tasks import machine as tk
from sessiond_worker.tasks.machine import Task, Turn

if TYPE_CHECKING:
    from sessiond_worker.runner.runner import Run

log = structlog.get_logger("worker.turns")

LOOK_SECONDS: Final = 0.2
AWAY_PATIENCE: Final = 120.0
"""Seconds that sessiond may be away in one piece while a turn's fate is asked for; then the run ends."""
STOP_PATIENCE: Final = 5.0
"""The same when the worker shall stop: the next run asks."""
PAGE: Final = 5_000
LEDGER_SLACK: Final = 60.0
"""Seconds by which the ledger is read from before the task's making: clocks differ."""
TIMEOUT_LIMITS: Final = (1.0, 86_400.0)


class Conversation:
    """A task's turns under one lease; without one it only looks."""

    def __init__(self, run: "Run", lease: Lease | None) -> None:
        self._run = run
        self._lease = lease
        self._client = run.client

    @property
    def _task(self) -> Task:
        return self._run.task

    # ---- under the lease -------------------------------------------------------------------------

    def talk(self) -> bool:
        """Turns until the task is over (True), or the lease is lost (False). Raises Stopped, Unavailable, Refused."""
        lease = self._held
        self._granted(lease)
        hold_in(self._run.settings.hooks_dir, "lease-granted")
        if self.settle():
            return True
        while not lease.lost.is_set():
            if stopping().is_set():
                raise Stopped
            if self._next(lease):
                return True
        return False

    @property
    def _held(self) -> Lease:
        if self._lease is None:
            raise RuntimeError("turns need a lease")
        return self._lease

    def _granted(self, lease: Lease) -> None:
        """Records the grant, and what the ledger says of the time since the last one."""
        found = self._meanwhile(lease)
        notice = None
        if self._task.turn is not None and (found.handlers or found.preempted):
            notice = prompts.meanwhile_notice(list(found.handlers), cut=bool(found.preempted))
        self._run.change(tk.Grant(lease.fence, found.last, notice), tk.Preempted(found.preempted))
        log.info("granted", handlers=len(found.handlers), preemptions=self._task.interruptions.preemptions)

    def _meanwhile(self, lease: Lease) -> ledger_gap.Meanwhile:
        task, entries = self._task, list[Mapping[str, Any]]()
        after = task.ledger or _ledger_id(task.created_at)
        try:
            while page := self._client.ledger(task.session, after):
                entries += page
                after = str(page[-1]["id"])
                if len(page) < PAGE:
                    break
        except (Unavailable, ProblemError) as failure:
            log.warning("the ledger cannot be read", error=str(failure))
            return ledger_gap.Meanwhile()
        return ledger_gap.read(entries, task.id, lease.ticket)

    def _next(self, lease: Lease) -> bool:
        """One turn; whether the task is over."""
        spent = tk.used_up(self._task)
        if spent is not None and not self._task.missing:
            self._run.change(tk.Stick(spent))
            return True
        turn = tk.next_turn(self._task)
        self._run.change(tk.Send(turn))
        hold_in(self._run.settings.hooks_dir, "turn-recorded")
        ended = self._sent(lease, turn)
        if ended is None:
            return False
        hold_in(self._run.settings.hooks_dir, "result-received")
        return self._take(turn, ended)

    def _take(self, turn: Turn, ended: Ended) -> bool:
        """Records the turn's end; whether the task is over by it. After a failed one it waits."""
        self._run.change(*judge.judge(self._task, turn, ended, self._run.settings.failures_allowed))
        job_metrics.TURNS.add(outcome=ended.outcome)
        task = self._task
        log.info(
            "turn over", turn=turn.key, outcome=ended.outcome, reason=prompts.one_line(ended.reason or "", 100),
            state=task.state.value, usd=task.used.usd,
        )  # fmt: skip
        if task.state not in tk.AT_WORK:
            return True
        if ended.outcome == "failed" and self._lease is not None:
            pause = self._run.settings.retry_seconds * 2 ** (task.failures - 1)
            with broken_off():
                self._lease.lost.wait(pause)
        return False

    # ---- sending ---------------------------------------------------------------------------------

    def _sent(self, lease: Lease, turn: Turn) -> Ended | None:
        """Sends the turn and reads it to its end. None: it never began, and the lease is lost."""
        prompt = prompts.prompt(self._task, turn)
        try:
            with broken_off():
                return self._until_over(lease, turn, prompt)
        except Stopped:
            self._cut_off(lease, turn)
            raise

    def _until_over(self, lease: Lease, turn: Turn, prompt: str) -> Ended | None:
        """Sends again only what surely never arrived."""
        ends = time.monotonic() + self._run.settings.broken_patience
        while not lease.lost.is_set():
            try:
                ended = self._read(lease, turn, prompt)
                # A failure's record says more than its result: whether the agent had begun at all.
                found = self._look(turn.key) if ended.outcome == "failed" else None
                return ended if found is None else judge.ended_of(found)
            except (LeaseLost, Unavailable, ProblemError) as failure:
                if self._look(turn.key) is not None:
                    return self._closed(turn.key)
                if not isinstance(failure, LeaseLost):
                    self._pause(lease, failure, ends)
        return None

    def _pause(self, lease: Lease, failure: Unavailable | ProblemError, until: float) -> None:
        """No turn can begin: asks again later. Raises the failure when there is no use in that."""
        if not isinstance(failure, Unavailable) or time.monotonic() > until:
            raise failure
        log.warning("no turn can begin", error=failure.type, again_in=failure.retry_after)
        lease.lost.wait(min(failure.retry_after or 1.0, 5.0))

    def _read(self, lease: Lease, turn: Turn, prompt: str) -> Ended:
        began, result = time.monotonic(), None
        low, high = TIMEOUT_LIMITS
        minutes = self._task.budget.minutes
        left = high if minutes is None else minutes * 60 - self._task.used.seconds
        for event in lease.turn(prompt, key=turn.key, timeout=min(high, max(low, left))):
            if isinstance(event, TurnResult):
                result = event
            elif isinstance(event, AgentEvent) and event.line.get("subtype") == "init":
                hold_in(self._run.settings.hooks_dir, "in-turn")
        if result is None:
            raise Unavailable("unreachable", "the turn's stream ended without a result")
        return Ended(result.outcome, result.text, result.reason, time.monotonic() - began, result.cost_usd or 0.0)

    def _cut_off(self, lease: Lease, turn: Turn) -> None:
        """The worker shall stop: the turn is cancelled and its end recorded, within the seconds that a drain takes."""
        found = self._look(turn.key)
        if found is None:
            return
        if found["state"] != "closed" and not lease.lost.is_set():
            try:
                lease.cancel_turn(found["id"])
            except LeaseLost:
                log.info("the lease was lost before its turn was cancelled")
        ended = self._closed(turn.key)
        if ended.outcome == "cancelled" and ended.reason == "cancelled":
            ended = Ended(ended.outcome, ended.text, "the worker was stopped", ended.seconds, ended.usd)
        self._run.change(*judge.judge(self._task, turn, ended, self._run.settings.failures_allowed))
        job_metrics.TURNS.add(outcome=ended.outcome)

    # ---- what became of a turn ---------------------------------------------------------------------

    def settle(self) -> bool:
        """Takes what became of the turn that an earlier run left open; whether the task is over by it.

        Without a lease a turn that still runs is left open; with one, nothing runs but what is ours.
        """
        turn = self._task.turn
        if turn is None or not turn.open:
            return False
        found = self._look(turn.key)
        if found is None or (self._lease is None and found["state"] != "closed"):
            return False
        return self._take(turn, self._closed(turn.key))

    def _look(self, key: str) -> Mapping[str, Any] | None:
        """The turn with this key; None when there is none. Raises Unavailable after a while."""
        backoff = Backoff(STOP_PATIENCE if stopping().is_set() else AWAY_PATIENCE)
        while True:
            try:
                return self._client.turn_by_key(self._task.session, key)
            except Unavailable as failure:
                backoff.wait(failure)
            except ProblemError as problem:
                if problem.status != 404:
                    raise
                return None

    def _closed(self, key: str) -> Ended:
        """Waits until the turn is closed."""
        while True:
            found = self._look(key)
            if found is not None and found["state"] == "closed":
                return judge.ended_of(found)
            time.sleep(LOOK_SECONDS)


def _ledger_id(at: str) -> str:
    """The ledger's ids begin with milliseconds: one that lies surely before this time."""
    return f"{int((parse_time(at).timestamp() - LEDGER_SLACK) * 1000)}-0"
