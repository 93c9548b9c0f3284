"""What a step writes into Redis: the plan of a step as commands. It decides nothing."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock.rules import Kind
from sessiond.lock.state import Lock
from sessiond.session import views
from sessiond.session.callers.turns import TurnBook
from sessiond.session.pipeline.plan import Plan
from sessiond.session.state import LeaseTime, Standing, conversation_of
from sessiond.settings import Settings
from sessiond.store import codec, diff
from sessiond.store.store import Store
from sessiond_common.clock import now_text


@dataclass(frozen=True, slots=True)
class Written:
    """What one step writes. `extras` are the living lease's after it; `grant` is (ticket, those skipped)."""

    commands: list[codec.Command]
    extras: codec.LeaseExtras | None
    grant: tuple[str, frozenset[str]] | None


class Writes:
    """Turns plans into commands, for one session."""

    def __init__(
        self, standing: Standing, turns: TurnBook, store: Store, lease_time: LeaseTime, max_hold: float,
        guard: Callable[[], dict[str, Any] | None], claim: Sequence[codec.Command],
    ) -> None:  # fmt: skip
        self._standing, self._turns, self._store = standing, turns, store
        self._lease_time, self._max_hold, self._guard = lease_time, max_hold, guard
        self._claim = claim
        self._stored_agent: dict[str, Any] | None = None

    def of(self, plan: Plan) -> Written:
        """What `plan` writes; stages the records of its turns and adds their entries to its ledger."""
        old, extras = self._standing.lock, self._standing.extras
        granted = _granted_now(old, plan)
        if granted is not None:
            extras = self._fresh_lease(plan)
        commands = [*self._ends(plan), *self._turn_commands(plan)]
        lease, left = plan.lock.lease, self._lease_time.hold_left()
        # After a restart `max_hold` runs for the last time: the next owner must know how far it is.
        kept = lease is not None and lease == old.lease and lease.restarts > 0
        if granted is None and extras is not None and left is not None and (kept or lease != old.lease):
            extras = replace(extras, hold_left=float(round(left)))
        commands += diff.diff(old, plan.lock, self._extras(extras))
        if kept and extras != self._standing.extras:
            commands += diff.lease(None, lease, extras)
        agent = self._agent(plan.agent)
        if agent != self._stored_agent:
            commands.append(codec.put("agent", agent))
        grant = (granted.ticket, granted.skipped) if granted is not None else None
        return Written(commands, extras if plan.lock.lease is not None else None, grant)

    def committed(self, plan: Plan) -> None:
        """What `of` gave for this plan is in Redis."""
        self._stored_agent = self._agent(plan.agent)

    def everything(self) -> tuple[list[codec.Command], list[ev.Entry]]:
        """The whole state and the owner's record, for a Redis that lost some of it."""
        now = self._standing
        extras = codec.Extras(lease=now.extras, turn=self._turns.open or {}, taken=now.taken)
        commands = [*self._claim, *diff.full(now.lock, extras, self._agent(now.agent))]
        return commands + self._store.recent_commands(), [("snapshot", views.snapshot(now.lock))]

    def _fresh_lease(self, plan: Plan) -> codec.LeaseExtras:
        worker = plan.lock.lease is not None and plan.lock.lease.kind is Kind.WORKER
        return codec.LeaseExtras(secrets.token_urlsafe(24), None if worker else self._max_hold, now_text())

    def _ends(self, plan: Plan) -> list[codec.Command]:
        commands: list[codec.Command] = []
        for effect in plan.effects:
            match effect:
                case ev.LeaseOver(fence=fence, ticket=ticket, holder=holder, reason=reason) if self._standing.extras:
                    past = {"fence": fence, "ticket": ticket, "holder": holder, "reason": reason.value}
                    commands.append(codec.keep(codec.past_suffix(self._standing.extras.secret), past))
                case ev.TicketOver(ticket=ticket, reason=reason):
                    commands.append(codec.keep(f"ended:{ticket}", {"reason": reason.value}))
        return commands

    def _turn_commands(self, plan: Plan) -> list[codec.Command]:
        commands: list[codec.Command] = []
        conversation, told = conversation_of(plan.agent), False
        for output in plan.outputs:
            match output:
                case st.TurnStarted():
                    commands += self._turns.started(plan.ledger)
                case st.TurnOver():
                    commands += self._turns.over(output, plan.ledger, conversation)
                    told = True
                case st.Gone() if not told and self._turns.open is not None and plan.lock.turn is None:
                    why = self._standing.agent.why or "reaped"
                    lost = st.TurnOver(self._turns.open["id"], st.Outcome.LOST, reason=why)
                    commands += self._turns.over(lost, plan.ledger, conversation)
        return commands

    def _extras(self, lease: codec.LeaseExtras | None) -> codec.Extras:
        return codec.Extras(lease=lease, turn=self._turns.current or {}, taken=self._standing.taken)

    def _agent(self, agent: st.Agent) -> dict[str, Any]:
        return {
            "conversation": agent.conversation, "generation": agent.generation, "known": agent.known,
            "guard": self._guard(),
        }  # fmt: skip


def _granted_now(old: Lock, plan: Plan) -> ev.Granted | None:
    """The grant of this step; an answer that is only repeated is none."""
    lease = plan.lock.lease
    if lease is None or (old.lease is not None and old.lease.fence == lease.fence):
        return None
    return plan.grant


def claim_of(settings: Settings) -> list[codec.Command]:
    """The owner record as ACQUIRE writes it, for a step that writes back what Redis lost."""
    state_dir = str(settings.state_dir.resolve())
    fields = {"instance": settings.instance, "url": settings.url, "state_dir": state_dir, "host": settings.host_name}
    return [("HSET", "meta", name, value) for name, value in fields.items()]
