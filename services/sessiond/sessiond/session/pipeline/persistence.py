"""The persist stage: it turns a step into the commands that Redis gets. It decides nothing."""

import secrets
from dataclasses import replace
from typing import Any

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock.rules import Kind
from sessiond.lock.state import Lock
from sessiond.session import views
from sessiond.session.context import SessionContext
from sessiond.session.pipeline.plan import Plan
from sessiond.session.pipeline.step import Step
from sessiond.session.state import conversation_of
from sessiond.settings import Settings
from sessiond.store import codec, diff
from sessiond_common.clock import now_text


class Persistence:
    """Turns the plans of one session into commands."""

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._stored_agent: dict[str, Any] | None = None

    def prepare(self, step: Step) -> None:
        """Set the step's commands, its grant and the lease's extras.

        This also stages the records of the step's turns and adds their ledger entries.
        """
        plan, state = step.plan, self._context.state
        granted = _new_grant(state.lock, plan)
        extras = state.lease_extras if granted is None else self._extras_of_new_lease(plan)
        step.commands += [*self._ended(plan), *self._turn_commands(plan)]
        lease, left = plan.lock.lease, self._context.lease_time.hold_left()
        # After a restart `max_hold` runs for the last time, so the next owner must know how much is left.
        restarted = lease is not None and lease == state.lock.lease and lease.restarts > 0
        changed = restarted or lease != state.lock.lease
        if granted is None and extras is not None and left is not None and changed:
            extras = replace(extras, hold_left=float(round(left)))
        step.commands += diff.diff(state.lock, plan.lock, self._diff_extras(plan, extras))
        if restarted and extras != state.lease_extras:
            step.commands += diff.lease(None, lease, extras)
        agent = self._agent(plan.agent)
        if agent != self._stored_agent:
            step.commands.append(codec.put("agent", agent))
        step.grant = (granted.ticket, granted.skipped) if granted is not None else None
        step.lease_extras = extras if lease is not None else None

    def committed(self, plan: Plan) -> None:
        """Remember the agent's record as stored, because the step is in Redis."""
        self._stored_agent = self._agent(plan.agent)

    def everything(self) -> tuple[list[codec.RedisCommand], list[ev.Entry]]:
        """Return the whole state and the owner's record, for a Redis that lost some of it."""
        context, state = self._context, self._context.state
        turn = context.turns.open.stored() if context.turns.open else {}
        extras = codec.Extras(lease=state.lease_extras, turn=turn, taken=state.taken)
        commands = [*owner_record(context.settings), *diff.full(state.lock, extras, self._agent(state.agent))]
        return commands + context.store.recent_commands(), [("snapshot", views.snapshot(state.lock))]

    def _extras_of_new_lease(self, plan: Plan) -> codec.LeaseExtras:
        worker = plan.lock.lease is not None and plan.lock.lease.kind is Kind.WORKER
        max_hold = None if worker else self._context.settings.times.max_hold
        return codec.LeaseExtras(secrets.token_urlsafe(24), max_hold, now_text())

    def _ended(self, plan: Plan) -> list[codec.RedisCommand]:
        """Return the commands that store the records of ended leases and tickets."""
        commands: list[codec.RedisCommand] = []
        extras = self._context.state.lease_extras
        for effect in plan.effects:
            match effect:
                case ev.LeaseOver(fence=fence, ticket=ticket, holder=holder, reason=reason) if extras:
                    past = {"fence": fence, "ticket": ticket, "holder": holder, "reason": reason.value}
                    commands.append(codec.keep(codec.past_suffix(extras.secret), past))
                case ev.TicketOver(ticket=ticket, reason=reason):
                    commands.append(codec.keep(f"ended:{ticket}", {"reason": reason.value}))
        return commands

    def _turn_commands(self, plan: Plan) -> list[codec.RedisCommand]:
        turns, commands = self._context.turns, list[codec.RedisCommand]()
        conversation, ended = conversation_of(plan.agent), False
        for output in plan.outputs:
            match output:
                case st.TurnStarted():
                    commands += turns.start(plan.ledger)
                case st.TurnOver():
                    commands += turns.end(output, plan.ledger, conversation)
                    ended = True
                case st.Gone() if not ended and turns.open is not None and plan.lock.turn is None:
                    why = self._context.state.agent.why or "reaped"
                    lost = st.TurnOver(turns.open.id, st.TurnOutcome.LOST, reason=why)
                    commands += turns.end(lost, plan.ledger, conversation)
        return commands

    def _diff_extras(self, plan: Plan, lease: codec.LeaseExtras | None) -> codec.Extras:
        state, turn = self._context.state, self._context.turns.current
        opens = turn is not None and plan.lock.turn != state.lock.turn
        return codec.Extras(lease=lease, turn=turn.stored() if turn is not None and opens else {}, taken=state.taken)

    def _agent(self, agent: st.Agent) -> dict[str, Any]:
        return {
            "conversation": agent.conversation, "generation": agent.generation, "known": agent.known,
            "guard": self._context.link.guard,
        }  # fmt: skip


def _new_grant(old: Lock, plan: Plan) -> ev.Granted | None:
    """Return the grant that this step makes. A repeated answer to an earlier grant does not count."""
    lease = plan.lock.lease
    if lease is None or (old.lease is not None and old.lease.fence == lease.fence):
        return None
    return plan.grant


def owner_record(settings: Settings) -> list[codec.RedisCommand]:
    """Return the owner record as ACQUIRE writes it, for a step that writes back what Redis lost."""
    state_dir = str(settings.state_dir.resolve())
    fields = {"instance": settings.instance, "url": settings.url, "state_dir": state_dir, "host": settings.host_name}
    return [("HSET", "meta", name, value) for name, value in fields.items()]
