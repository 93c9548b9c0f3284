"""What a turn's end makes of its task: the events to be recorded, as one step. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sessiond_common.clock import seconds_between
from sessiond_worker.runner import prompts
from sessiond_worker.runner.reply import outcome_of
from sessiond_worker.tasks import machine as tk
from sessiond_worker.tasks.machine import Task, Turn

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
"""The reasons of lost leases and cut turns, in words for the agent."""


def in_words(reason: str | None) -> str:
    """A reason of sessiond's, for the agent and for the record."""
    return WHY.get(reason or "", reason or "no reason was given")


@dataclass(frozen=True, slots=True)
class Ended:
    """A closed turn: outcome completed, cancelled, failed or lost; seconds it took; US dollars it cost.

    sessiond gives each turn's cost as the difference of the agent's running total, which begins anew with every agent
    process; so costs are summed up and never compared.
    """

    outcome: str
    text: str = ""
    reason: str | None = None
    seconds: float = 0.0
    usd: float = 0.0
    began: bool = True
    """Whether the agent had begun with it."""


def ended_of(turn: Mapping[str, Any]) -> Ended:
    """From a closed turn's record (`GET /turns?key=`)."""
    return Ended(
        str(turn["outcome"]), str(turn.get("text") or ""), turn.get("reason"),
        seconds_between(turn["accepted_at"], turn["closed_at"]), max(0.0, float(turn.get("cost_usd") or 0.0)),
        began=turn.get("started_at") is not None,
    )  # fmt: skip


def judge(task: Task, turn: Turn, ended: Ended, failures_allowed: int) -> tuple[tk.Event, ...]:
    """The turn's close, and the task's own end when this is one."""
    if ended.outcome == "completed":
        return _completed(turn, ended)
    if ended.outcome == "failed" and not ended.began:
        ended = replace(ended, outcome="lost")  # the agent could not run: no turn used, and no failure of this task
    why = in_words(ended.reason)
    notice = prompts.cut_notice(turn, ended.outcome, prompts.one_line(why, 500))
    close = tk.Close(turn.key, ended.outcome, ended.reason, ended.seconds, ended.usd, notice=notice)
    if ended.outcome == "failed":
        after = tk.decide(task, close, task.updated_at)
        spent = tk.used_up(after)
        if spent is not None or after.failures >= failures_allowed:
            return close, tk.Stick(spent or f"{after.failures} turns in a row failed, the last one: {why}")
    return (close,)


def _completed(turn: Turn, ended: Ended) -> tuple[tk.Event, ...]:
    said = outcome_of(ended.text)
    note = None if said is None else said.note
    close = tk.Close(turn.key, ended.outcome, None, ended.seconds, ended.usd, missing=said is None, note=note)
    if said is None:
        return (close, tk.Stick("its answer had no outcome line, twice")) if turn.nudge else (close,)
    match said.outcome:
        case "done":
            return close, tk.Done(said.note)
        case "nothing-to-do":
            return close, tk.Nothing(said.note)
        case "stuck":
            return close, tk.Stick(said.note or "the agent gave no reason")
        case _:
            return (close,)
