"""Decides what the end of a turn means for its task: the events to record as one change. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sessiond_common.clock import seconds_between
from sessiond_worker.runner import prompts
from sessiond_worker.runner.reply import outcome_of
from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks import machine
from sessiond_worker.tasks.model import Task, TaskTurn, used_up

WHY: Final[Mapping[str, str]] = {
    "preempted": "a person's comment came, and comments go first",
    "expired": "the worker could not renew its lease",
    "unclaimed": "the worker did not take its lease up in time",
    "forced": "an operator ended the lease",
    "withdrawn": "the worker's place in the queue was withdrawn",
    "hold-limit": "the lease was held for too long",
    "unknown": "the lock no longer knew of the lease",
    "cancelled": "the turn was cancelled",
    "timeout": "the turn took longer than what is left of the task's minutes",
}
"""The reasons of lost leases and cancelled turns, in words for the agent."""


def in_words(reason: str | None) -> str:
    """Return a reason of sessiond in words, for the agent and for the record."""
    return WHY.get(reason or "", reason or "no reason was given")


@dataclass(frozen=True, slots=True)
class ClosedTurn:
    """A closed turn. `outcome` is completed, cancelled, failed or lost; `seconds` it took; US dollars it cost.

    sessiond computes a turn's cost from the agent's running total, which starts at 0 in every agent process. So costs
    are added up and never compared.
    """

    outcome: str
    text: str = ""
    reason: str | None = None
    seconds: float = 0.0
    usd: float = 0.0
    began: bool = True
    """Whether the agent had begun the turn."""


def closed_turn(turn: Mapping[str, Any]) -> ClosedTurn:
    """Read sessiond's record of a closed turn (`GET /turns?key=`)."""
    return ClosedTurn(
        str(turn["outcome"]), str(turn.get("text") or ""), turn.get("reason"),
        seconds_between(turn["accepted_at"], turn["closed_at"]), max(0.0, float(turn.get("cost_usd") or 0.0)),
        began=turn.get("started_at") is not None,
    )  # fmt: skip


def judge(task: Task, turn: TaskTurn, closed: ClosedTurn, failures_allowed: int) -> tuple[ev.Event, ...]:
    """Return the event that closes the turn, and the event that ends the task if the turn ends it.

    `failures_allowed`: failed turns in a row after which the task is stuck.
    """
    if closed.outcome == "completed":
        return _completed(turn, closed)
    if closed.outcome == "failed" and not closed.began:
        closed = replace(closed, outcome="lost")  # the agent could not run: the task neither used a turn nor failed
    why = in_words(closed.reason)
    notice = prompts.cut_notice(turn, closed.outcome, prompts.one_line(why, 500))
    close = ev.Close(turn.key, closed.outcome, closed.reason, closed.seconds, closed.usd, notice=notice)
    if closed.outcome == "failed":
        after = machine.decide(task, close, task.updated_at)
        spent = used_up(after)
        if spent is not None or after.failures >= failures_allowed:
            return close, ev.Stick(spent or f"{after.failures} turns in a row failed, the last one: {why}")
    return (close,)


def _completed(turn: TaskTurn, closed: ClosedTurn) -> tuple[ev.Event, ...]:
    reply = outcome_of(closed.text)
    note = None if reply is None else reply.note
    close = ev.Close(turn.key, closed.outcome, None, closed.seconds, closed.usd, missing=reply is None, note=note)
    if reply is None:
        return (close, ev.Stick("its answer had no outcome line, twice")) if turn.nudge else (close,)
    match reply.outcome:
        case "done":
            return close, ev.Done(reply.note)
        case "nothing-to-do":
            return close, ev.Nothing(reply.note)
        case "stuck":
            return close, ev.Stick(reply.note or "the agent gave no reason")
        case _:
            return (close,)
