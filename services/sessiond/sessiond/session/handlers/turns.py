"""Handles the commands about turns."""

import uuid

from sessiond.agent import state as st
from sessiond.agent.termination import backoff
from sessiond.lock import events as ev
from sessiond.lock.state import Lease
from sessiond.problems import Problem, no_turn
from sessiond.session.callers.turn_record import TurnRecord
from sessiond.session.callers.turn_stream import TurnStream
from sessiond.session.callers.turns import digest
from sessiond.session.commands import CancelTurn, StartTurn, TurnRequest
from sessiond.session.context import SessionContext
from sessiond.session.handlers.leases import lease_lost
from sessiond.session.pipeline.runner import Pipeline
from sessiond.session.state import conversation_of
from sessiond_common.clock import now_text


def start_turn(pipeline: Pipeline, command: StartTurn) -> TurnStream:
    """Accept a turn of the lease's holder. For the key of a completed turn, reply with the stored result."""
    context, request = pipeline.context, command.request
    lease = context.state.lease_of(command.secret)
    if lease is None:
        raise lease_lost(context, command.secret)
    attempt = 1
    before = context.turns.find_key(request.key) if request.key is not None else None
    if before is not None:
        stored = _stored_result(before, request)
        if stored is not None:
            pipeline.step(ev.ConfirmGrant(lease.fence))
            return stored
        attempt = before.attempt + 1
    if context.state.lock.turn is not None:
        raise Problem("turn-open", 409, "The lease's turn is still open", turn=context.state.lock.turn)
    if context.state.agent.phase is st.Phase.BROKEN:
        raise _agent_broken(context)
    return _accept(pipeline, lease, request, attempt)


def _stored_result(before: TurnRecord, request: TurnRequest) -> TurnStream | None:
    """Return the events of a completed turn; None for a turn that runs again as the next attempt."""
    if before.prompt_sha256 != digest(request.prompt):
        raise Problem("key-reused", 409, "The key belongs to a turn with another prompt", turn=before.id)
    if not before.closed:
        raise Problem("turn-open", 409, "The turn with this key is still open", turn=before.id)
    if before.outcome is not st.TurnOutcome.COMPLETED:
        return None
    stream = TurnStream(before.id)
    stream.finish(before.result())
    return stream


def _agent_broken(context: SessionContext) -> Problem:
    agent = context.state.agent
    left = context.timers.left(("agent", ("backoff", str(agent.fails))))
    return Problem(
        "agent-broken", 503, f"The agent cannot run: {agent.why}", reason=agent.why,
        retry_after=max(1.0, left if left is not None else backoff(agent.fails)),
    )  # fmt: skip


def _accept(pipeline: Pipeline, lease: Lease, request: TurnRequest, attempt: int) -> TurnStream:
    context = pipeline.context
    turn = st.AgentTurn(
        id=f"tu-{uuid.uuid4().hex}", uuid=str(uuid.uuid4()), prompt=request.prompt, kind=lease.kind,
        model=request.model or context.settings.model, composed=not request.raw, timeout=request.timeout,
    )  # fmt: skip
    record = TurnRecord(
        id=turn.id, fence=lease.fence, ticket=lease.ticket, kind=lease.kind, key=request.key, attempt=attempt,
        uuid=turn.uuid, model=turn.model, prompt_sha256=digest(request.prompt), accepted_at=now_text(),
        conversation=conversation_of(context.state.agent),
    )  # fmt: skip
    entry = {
        "turn": turn.id, "fence": lease.fence, "ticket": lease.ticket, "kind": lease.kind.value, "key": request.key,
        "attempt": attempt,
    }  # fmt: skip
    stream, commands = context.turns.accept(record)
    pipeline.step(
        ev.AcceptTurn(lease.fence, turn.id), st.Begin(turn), ledger=[("turn-accepted", entry)], commands=commands
    )  # fmt: skip
    return stream


def cancel_turn(pipeline: Pipeline, command: CancelTurn) -> None:
    """Cancel the open turn. A closed turn does not change."""
    context = pipeline.context
    if command.secret is not None and context.state.lease_of(command.secret) is None:
        raise lease_lost(context, command.secret)
    if context.state.lock.turn == command.turn:
        pipeline.step(st.Cancel(command.turn, "cancelled"))
    elif context.turns.find(command.turn) is None:
        raise no_turn()
