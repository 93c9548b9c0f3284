"""Handles the commands about tickets."""

from typing import Any

from sessiond.lock import events as ev
from sessiond.lock.rules import QueueFull
from sessiond.problems import Problem, away, superseded
from sessiond.session import views
from sessiond.session.commands import LeaveTicket, TakeTicket, WaitTicket, WithdrawTicket
from sessiond.session.pipeline.runner import Pipeline
from sessiond.session.pipeline.step import Step
from sessiond_common.clock import now_text


def take_ticket(pipeline: Pipeline, command: TakeTicket) -> tuple[dict[str, Any], bool]:
    """Take a place, or find the one that the key has. Replies with the ticket's view, and whether it is new."""
    state, ticket = pipeline.context.state, command.ticket
    for known in state.lock.tickets.values():
        if command.key is not None and known.key == command.key and known.kind is command.kind:
            pipeline.step()  # a step without events only confirms that this instance still owns the session
            return views.ticket_view(state.lock, known.id, state.taken), False
    state.taken[ticket] = now_text()
    try:
        pipeline.step(ev.Take(ticket, command.kind, command.rank, command.key))
    except QueueFull as error:
        raise Problem("queue-full", 503, str(error)) from error
    finally:
        if ticket not in state.lock.tickets:
            state.taken.pop(ticket, None)
    if command.key is None and pipeline.context.inbox.serving_answered:
        # Redis was away during the step, and the caller was refused. So no caller knows this place.
        pipeline.step(ev.Withdraw(ticket))
        raise away()
    return views.ticket_view(state.lock, ticket, state.taken), True


def wait_ticket(pipeline: Pipeline, command: WaitTicket) -> None:
    """Make the waiter's holder present. The waiter is registered once the step is committed."""
    waiter = command.waiter
    pipeline.context.ticket_waits.require(waiter.ticket)
    plan = pipeline.decide(ev.Wait(waiter.ticket, waiter.holder))
    # The old waiter is answered when it is replaced, so drop this effect: it would reach the new waiter.
    plan.effects = [e for e in plan.effects if not isinstance(e, ev.Displaced)]
    pipeline.run(Step(plan, pipeline.cause, waiter=waiter))


def leave_ticket(pipeline: Pipeline, command: LeaveTicket) -> None:
    """End a wait, unless another waiter has replaced it."""
    waiter = command.waiter
    if not pipeline.context.waiters.remove(waiter):
        waiter.refuse(away())
        return
    event = ev.HangUp if command.hung_up else ev.WaitOver
    pipeline.step(event(waiter.ticket, waiter.holder))
    pipeline.context.ticket_waits.end(waiter)


def withdraw_ticket(pipeline: Pipeline, command: WithdrawTicket) -> None:
    """End a ticket. With a holder, it must be the ticket's current holder."""
    pipeline.context.ticket_waits.require(command.ticket)
    known = pipeline.context.state.lock.tickets[command.ticket]
    if command.holder is not None and command.holder in known.superseded:
        raise superseded()
    pipeline.step(ev.Withdraw(command.ticket, command.holder))
