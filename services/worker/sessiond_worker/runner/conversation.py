"""The turns of one lease: send a turn, record how it ended, decide whether another one follows."""

import time
from collections.abc import Mapping
from typing import Any, Final

import structlog

from sessiond.client import AgentEvent, Client, Lease, LeaseLost, ProblemError, TurnResult, Unavailable
from sessiond.client.retry import Backoff
from sessiond_common.clock import parse_time
from sessiond_common.fault_points import hold_in
from sessiond_common.jobs.worker import Stopped, interruptible, stopping
from sessiond_worker.runner import job_metrics, judge, ledger_gap, prompts
from sessiond_worker.runner.judge import ClosedTurn
from sessiond_worker.runner.recorder import TaskRecorder
from sessiond_worker.settings import Settings
from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks.model import AT_WORK, Task, TaskTurn, next_turn, used_up

log = structlog.get_logger("worker.turns")

POLL_SECONDS: Final = 0.2
AWAY_PATIENCE: Final = 120.0
"""A run that asks how a turn ended waits at most this many seconds for sessiond to answer; then the run ends."""
STOP_PATIENCE: Final = 5.0
"""The same limit while the worker stops. The next run then asks again."""
LEDGER_PAGE: Final = 5_000
"""Entries in a full page of the ledger. A shorter page is the last one."""
LEDGER_SLACK: Final = 60.0
"""The ledger is read from this many seconds before the task's creation, because clocks differ."""
TURN_TIMEOUTS: Final = (1.0, 86_400.0)
"""The shortest and the longest timeout of a turn, in seconds."""
MAX_RETRY_PAUSE: Final = 5.0


class Conversation:
    """The turns of one task under one lease. Without a lease it only records how an earlier turn ended."""

    def __init__(self, recorder: TaskRecorder, client: Client, settings: Settings, lease: Lease | None) -> None:
        self._recorder, self._client, self._settings, self._lease = recorder, client, settings, lease

    @property
    def _task(self) -> Task:
        return self._recorder.task

    # ---- under the lease -------------------------------------------------------------------------

    def run_turns(self) -> bool:
        """Run turns until the task is over (True) or the lease is lost (False).

        Raises:
            Stopped: the worker stops.
            Unavailable: sessiond is away for too long, or its agent cannot run.
            TaskRefused: somebody else has changed the task, usually by a cancel.
        """
        lease = self._lease
        if lease is None:
            raise RuntimeError("turns need a lease")
        self._record_grant(lease)
        hold_in(self._settings.hooks_dir, "lease-granted")
        if self.settle():
            return True
        while not lease.lost.is_set():
            if stopping().is_set():
                raise Stopped
            if self._next(lease):
                return True
        return False

    def _record_grant(self, lease: Lease) -> None:
        """Record the grant, and what the ledger says about the time since the last one."""
        gap = self._read_ledger(lease)
        notice = None
        if self._task.turn is not None and (gap.handlers or gap.preempted):
            notice = prompts.gap_notice(list(gap.handlers), preempted=bool(gap.preempted))
        self._recorder.change(ev.Grant(lease.fence, gap.last, notice), ev.Preempted(gap.preempted))
        log.info("granted", handlers=len(gap.handlers), preemptions=self._task.interruptions.preemptions)

    def _read_ledger(self, lease: Lease) -> ledger_gap.LedgerGap:
        task, entries = self._task, list[Mapping[str, Any]]()
        after = task.ledger or _ledger_id(task.created_at)
        try:
            while page := self._client.ledger(task.session, after):
                entries += page
                after = str(page[-1]["id"])
                if len(page) < LEDGER_PAGE:
                    break
        except (Unavailable, ProblemError) as failure:
            log.warning("cannot read the ledger; the next prompt names no handlers", error=str(failure))
            return ledger_gap.LedgerGap()
        return ledger_gap.read(entries, task.id, lease.ticket)

    def _next(self, lease: Lease) -> bool:
        """Run one turn. Returns whether the task is over."""
        spent = used_up(self._task)
        if spent is not None and not self._task.missing:
            self._recorder.change(ev.Stick(spent))
            return True
        turn = next_turn(self._task)
        self._recorder.change(ev.Send(turn))
        hold_in(self._settings.hooks_dir, "turn-recorded")
        closed = self._send(lease, turn)
        if closed is None:
            return False
        hold_in(self._settings.hooks_dir, "result-received")
        return self._finish(turn, closed)

    def _finish(self, turn: TaskTurn, closed: ClosedTurn) -> bool:
        """Record the turn's end, and wait after a failed one. Returns whether the task is over."""
        self._record(turn, closed)
        task = self._task
        log.info(
            "turn over", turn=turn.key, outcome=closed.outcome, reason=prompts.one_line(closed.reason or "", 100),
            state=task.state.value, usd=task.used.usd,
        )  # fmt: skip
        if task.state not in AT_WORK:
            return True
        if closed.outcome == "failed" and self._lease is not None:
            pause = self._settings.retry_seconds * 2 ** (task.failures - 1)
            with interruptible():
                self._lease.lost.wait(pause)
        return False

    def _record(self, turn: TaskTurn, closed: ClosedTurn) -> None:
        self._recorder.change(*judge.judge(self._task, turn, closed, self._settings.failures_allowed))
        job_metrics.TURNS.add(outcome=closed.outcome)

    # ---- sending ---------------------------------------------------------------------------------

    def _send(self, lease: Lease, turn: TaskTurn) -> ClosedTurn | None:
        """Send the turn and read it to its end. Returns None if it never began and the lease is lost."""
        prompt = prompts.prompt(self._task, turn)
        try:
            with interruptible():
                return self._until_closed(lease, turn, prompt)
        except Stopped:
            self._cut_off(lease, turn)
            raise

    def _until_closed(self, lease: Lease, turn: TaskTurn, prompt: str) -> ClosedTurn | None:
        """Send the turn; send it again only when sessiond knows no turn with its key."""
        ends = time.monotonic() + self._settings.broken_patience
        while not lease.lost.is_set():
            try:
                closed = self._read(lease, turn, prompt)
                # Only the record of a failed turn says whether the agent had begun.
                found = self._find(turn.key) if closed.outcome == "failed" else None
                return closed if found is None else judge.closed_turn(found)
            except (LeaseLost, Unavailable, ProblemError) as failure:
                if self._find(turn.key) is not None:
                    return self._wait_closed(turn.key)
                if not isinstance(failure, LeaseLost):
                    self._pause(lease, failure, ends)
        return None

    def _pause(self, lease: Lease, failure: Unavailable | ProblemError, until: float) -> None:
        """Wait before the turn is sent again. Raises the failure if it is not temporary, or after `until`."""
        if not isinstance(failure, Unavailable) or time.monotonic() > until:
            raise failure
        log.warning("cannot begin the turn; retrying", error=failure.type, again_in=failure.retry_after)
        lease.lost.wait(min(failure.retry_after or 1.0, MAX_RETRY_PAUSE))

    def _read(self, lease: Lease, turn: TaskTurn, prompt: str) -> ClosedTurn:
        began, result = time.monotonic(), None
        shortest, longest = TURN_TIMEOUTS
        minutes = self._task.budget.minutes
        left = longest if minutes is None else minutes * 60 - self._task.used.seconds
        for event in lease.turn(prompt, key=turn.key, timeout=min(longest, max(shortest, left))):
            if isinstance(event, TurnResult):
                result = event
            elif isinstance(event, AgentEvent) and event.line.get("subtype") == "init":
                hold_in(self._settings.hooks_dir, "in-turn")
        if result is None:
            raise Unavailable("unreachable", "the turn's stream ended without a result")
        seconds = time.monotonic() - began
        return ClosedTurn(result.outcome, result.text, result.reason, seconds, result.cost_usd or 0.0)

    def _cut_off(self, lease: Lease, turn: TaskTurn) -> None:
        """Cancel the turn and record its end. The worker stops, so it has only a few seconds for this."""
        found = self._find(turn.key)
        if found is None:
            return
        if found["state"] != "closed" and not lease.lost.is_set():
            try:
                lease.cancel_turn(found["id"])
            except LeaseLost:
                log.info("the lease was lost before its turn was cancelled")
        closed = self._wait_closed(turn.key)
        if closed.outcome == "cancelled" and closed.reason == "cancelled":
            closed = ClosedTurn(closed.outcome, closed.text, "the worker was stopped", closed.seconds, closed.usd)
        self._record(turn, closed)

    # ---- how a turn ended --------------------------------------------------------------------------

    def settle(self) -> bool:
        """Record the end of a turn that an earlier run left open. Returns whether the task is over.

        Without a lease, a turn that still runs stays open.
        """
        turn = self._task.turn
        if turn is None or not turn.open:
            return False
        found = self._find(turn.key)
        if found is None or (self._lease is None and found["state"] != "closed"):
            return False
        return self._finish(turn, self._wait_closed(turn.key))

    def _find(self, key: str) -> Mapping[str, Any] | None:
        """Return sessiond's record of the turn with this key, or None. Raises Unavailable after a while."""
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

    def _wait_closed(self, key: str) -> ClosedTurn:
        while True:
            found = self._find(key)
            if found is not None and found["state"] == "closed":
                return judge.closed_turn(found)
            time.sleep(POLL_SECONDS)


def _ledger_id(at: str) -> str:
    """Return a ledger id that lies before this time. Ids begin with milliseconds since 1970."""
    return f"{int((parse_time(at).timestamp() - LEDGER_SLACK) * 1000)}-0"
