"""Checks of entries about a turn, the background tasks or the agent's process."""

from collections.abc import Mapping
from typing import Any, Final

from sessiond.verify.state import Agent, Life, OpenTurn, State

Entry = Mapping[str, Any]
LEASE_ENDS: Final = frozenset(
    {"released", "unclaimed", "preempted", "expired", "hold-limit", "forced", "withdrawn"}
)  # fmt: skip
OUTCOMES: Final = frozenset({"completed", "cancelled", "failed", "lost"})


def accepted(r: State, e: Entry) -> None:
    turn, fence = e["turn"], e["fence"]
    if r.turn is not None:
        r.wrong("one_turn_open", f"{turn} is accepted while {r.turn.id} is open")
    if r.lease is None or r.lease.fence != fence:
        r.wrong(
            "single_writer", f"{turn} is accepted with fence {fence}; the current fence is {r.lease and r.lease.fence}"
        )
    elif (r.lease.ticket, r.lease.kind) != (e["ticket"], e["kind"]):
        r.wrong("one_holder_per_lease", f"{turn} belongs to {e['ticket']}, but the lease belongs to {r.lease.ticket}")
    r.turn = OpenTurn(turn, fence, e["kind"], started=False, interrupted=False)


def started(r: State, e: Entry) -> None:
    turn = e["turn"]
    if turn == r.closed:
        r.wrong("closed_means_nothing_can_come", f"{turn} starts after it was closed")
    elif r.turn is None or r.turn.id != turn or r.turn.started:
        r.wrong("result_belongs_to_its_turn", f"{turn} starts; the open turn is {r.turn and r.turn.id}")
    if r.agent.life not in (Life.UNKNOWN, Life.STARTED) or r.agent.stopping:
        r.wrong("one_agent_per_conversation", f"{turn} starts, but no agent runs")
    if r.turn is not None:
        r.turn.started = True


def interrupt(r: State, e: Entry) -> None:
    turn = e["turn"]
    if r.turn is None or r.turn.id != turn:
        r.wrong("cancel_stays_in_its_turn", f"{turn} is interrupted; the open turn is {r.turn and r.turn.id}")
    elif r.turn.interrupted:
        r.wrong("cancel_stays_in_its_turn", f"{turn} is interrupted twice")
    else:
        r.turn.interrupted = True


def closed(r: State, e: Entry) -> None:
    turn = r.turn
    if e["outcome"] not in OUTCOMES:
        raise ValueError(f"unknown outcome: {e['outcome']!r}")
    if turn is None or turn.id != e["turn"]:
        r.wrong("result_belongs_to_its_turn", f"{e['turn']} is closed; the open turn is {turn and turn.id}")
        return
    if turn.fence is not None and turn.fence != e["fence"]:
        r.wrong("result_belongs_to_its_turn", f"{turn.id} is closed with fence {e['fence']} instead of {turn.fence}")
    if turn.kind not in (None, e["kind"]):
        r.wrong("result_belongs_to_its_turn", f"{turn.id} is closed with kind {e['kind']} instead of {turn.kind}")
    wrong = _wrong_outcome(r, e, turn)
    if wrong is not None:
        r.wrong(*wrong)
    r.turn, r.closed = None, turn.id


def _wrong_outcome(r: State, e: Entry, turn: OpenTurn) -> tuple[str, str] | None:
    outcome, reason = e["outcome"], e.get("reason")
    if outcome == "completed" and not e.get("text_chars", 1):
        return "empty_result_is_not_completion", f"{turn.id} is completed with an empty result"
    if outcome == "completed" and turn.started is False:
        return "result_belongs_to_its_turn", f"{turn.id} is completed but never started"
    if outcome == "lost" and not r.step.reaped:
        return "closed_means_nothing_can_come", f"{turn.id} is lost, but its agent was not reaped"
    if turn.interrupted and not r.step.reaped and "interrupt_to_ack_ms" not in e:
        return "closed_means_nothing_can_come", f"{turn.id} is closed before its interrupt is acknowledged"
    over = r.drain is not None and (r.drain.why == reason or (r.drain.forced and reason == "forced"))
    if outcome == "cancelled" and reason in LEASE_ENDS and not over:
        return "cancel_stays_in_its_turn", f"{turn.id} is cancelled as {reason}, but its lease did not end as {reason}"
    return None


def tasks(r: State, e: Entry) -> None:
    r.tasks = bool(e["running"])


# ---- the process -----------------------------------------------------------------------------

ONE: Final = "one_agent_per_conversation"


def agent_starting(r: State, _: Entry) -> None:
    if r.agent.life not in (Life.UNKNOWN, Life.NONE):
        r.wrong(ONE, f"an agent starts while another one is {r.agent.life.value}")
    r.agent = Agent(Life.STARTING)


def agent_started(r: State, _: Entry) -> None:
    if r.agent.life not in (Life.UNKNOWN, Life.STARTING):
        r.wrong(ONE, f"an agent has started that was not starting but {r.agent.life.value}")
    r.agent.life = Life.STARTED


def agent_stopping(r: State, _: Entry) -> None:
    if r.agent.life in (Life.NONE, Life.LEFT) or r.agent.stopping:
        r.wrong(ONE, f"an agent is stopped that is already {'stopping' if r.agent.stopping else r.agent.life.value}")
    r.agent.stopping = True


def agent_killed(r: State, _: Entry) -> None:
    if not r.agent.stopping:
        r.wrong(ONE, f"an agent is killed that was not asked to stop: {r.agent.life.value}")


def agent_reaped(r: State, _: Entry) -> None:
    if r.agent.life is Life.NONE:
        r.wrong(ONE, "an agent is reaped but none was started")
    r.agent = Agent(Life.NONE)
    r.tasks, r.step.reaped = False, True
