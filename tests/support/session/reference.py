"""The session as the pure machines give it, and what Redis must hold of it. Shares no code with the store."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import orjson

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock import machine
from sessiond.lock.rules import FENCES_PER_EPOCH, Presence
from sessiond.lock.state import Lock, Ticket
from sessiond.session import views
from sessiond.session.pipeline.plan import Plan, compose
from support.session.owned import Look

BOOK = frozenset({"turn-started", "turn-closed", "kept"})
"""Ledger entries that no machine makes: those of the turns' records, and of what is kept beside the machines."""

Entries = list[tuple[str, dict[str, Any]]]


@dataclass
class Kept:
    """What is remembered of something that ended: some fields of a stored object, and its writer."""

    value: dict[str, Any]
    by: int


@dataclass
class Reference:
    """Both machines' states, and all that follows from them."""

    lock: Lock = field(default_factory=Lock)
    agent: st.Agent = field(default_factory=lambda: st.Agent("none"))
    kept: dict[str, Kept] = field(default_factory=dict)
    opened: str | None = None
    """The turn whose record is open. While the agent sleeps, only an owner's restart ends its record."""
    life: int = 0
    """The number of the present owner."""

    def decide(self, *events: ev.Event | st.Event) -> Plan | Exception:
        """Return what these events would do."""
        try:
            return compose(self.lock, self.agent, events)
        except (ev.Refused, ev.InvariantBroken) as refused:
            return refused

    def take(self, plan: Plan, secret: str | None) -> None:
        """Take a committed plan. `secret` is that of the lease before it."""
        self._ends(plan, secret)
        self._turns(plan)
        self.lock, self.agent = plan.lock, plan.agent

    def keep(self, name: str, **value: Any) -> None:
        before = self.kept[name].value if name in self.kept else {}
        self.kept[name] = Kept({**before, **value}, self.life)

    def _ends(self, plan: Plan, secret: str | None) -> None:
        for effect in plan.effects:
            match effect:
                case ev.TicketOver(ticket=ticket, reason=reason):
                    self.keep(f"ended:{ticket}", reason=reason.value)
                case ev.LeaseOver(fence=fence, ticket=ticket, holder=holder, reason=reason):
                    assert secret is not None
                    name = f"past:{hashlib.sha256(secret.encode()).hexdigest()}"
                    self.keep(name, fence=fence, ticket=ticket, holder=holder, reason=reason.value)

    def _turns(self, plan: Plan) -> None:
        told = False
        for output in plan.outputs:
            match output:
                case st.TurnStarted(turn=turn):
                    self.keep(f"turn:{turn}", state="started")
                case st.TurnOver(turn=turn, outcome=outcome):
                    self.close(turn, outcome.value)
                    told = True
                case st.Gone() if not told and self.opened is not None and plan.lock.turn is None:
                    self.close(self.opened, "lost")

    def accept(self, turn: str, fence: int) -> None:
        self.opened = turn
        self.keep(f"turn:{turn}", state="accepted", fence=fence)

    def close(self, turn: str, outcome: str) -> None:
        self.opened = None
        self.keep(f"turn:{turn}", state="closed", outcome=outcome)

    def absences(self) -> Entries:
        """Forget presence and passed-over marks, because Redis is back."""
        said = [("absent", {"ticket": t.id}) for t in self.lock.tickets.values() if t.present or t.passed]
        self.lock = replace(self.lock, tickets={k: forgotten(t) for k, t in self.lock.tickets.items()})
        return said

    def reload(self, epoch: int, cwd: str) -> Entries:
        """Take the stored state, as a new owner or the same one after a step that must not be."""
        lock = machine.restarted(self.lock)
        self.lock = replace(lock, fence=max(lock.fence, epoch * FENCES_PER_EPOCH))
        self.opened = lock.turn
        old = self.agent
        self.agent = st.Agent(
            old.conversation, old.generation, old.known, cwd, old.default_model, leased=lock.lease is not None
        )
        if lock.open:
            self.agent = replace(self.agent, phase=st.Phase.STOPPING, why="owner-restart")
        return [("snapshot", views.snapshot(self.lock))]


def forgotten(ticket: Ticket) -> Ticket:
    return replace(ticket, presence=Presence.ABSENT, passed=False)


def same(entries: Entries) -> Entries:
    """Return entries as they come back from JSON; `absent` entries of one step in the order of their tickets."""
    told = [(event, json.loads(orjson.dumps(data))) for event, data in entries]
    for event, data in told:
        if event == "snapshot":
            data["tickets"].sort(key=lambda ticket: ticket["id"])
    runs = [list(run) for _, run in groupby(told, key=lambda entry: entry[0] == "absent")]
    return [entry for run in runs for entry in (sorted(run, key=_ticket_of) if run[0][0] == "absent" else run)]


def _ticket_of(entry: tuple[str, dict[str, Any]]) -> str:
    return str(entry[1]["ticket"])


# ---- what must be stored ---------------------------------------------------------------------


def stored(lock: Lock) -> dict[str, Any]:
    """Return every stored field of the lock, by its key."""
    lease, drain = lock.lease, lock.drain
    return {
        "queue": {t.id: t.score for t in lock.tickets.values() if lease is None or t.id != lease.ticket},
        "tickets": {t.id: _ticket(t) for t in lock.tickets.values()},
        "lease": lease and {
            "fence": lease.fence, "ticket": lease.ticket, "kind": lease.kind.value, "holder": lease.holder,
            "claimed": lease.claimed, "restarts": lease.restarts,
        },
        "drain": drain and {
            "fence": drain.fence, "ticket": drain.ticket, "kind": drain.kind.value, "why": drain.why.value,
            "forced": drain.forced,
        },
        "open": lock.turn,
        "arrivals": lock.arrivals, "fence": lock.fence, "tasks": lock.tasks,
    }  # fmt: skip


def _ticket(t: Ticket) -> dict[str, Any]:
    return {
        "kind": t.kind.value, "score": t.score, "key": t.key, "holder": t.holder, "superseded": sorted(t.superseded),
        "lapsed": t.lapsed, "losses": t.losses, "taken_at": taken_at(t.id),
    }  # fmt: skip


def taken_at(ticket: str) -> str:
    return f"when {ticket} was taken"


def read(look: Look) -> dict[str, Any]:
    """Return the same fields as Redis holds them."""
    lease, opened = look.text("lease"), look.text("open")
    return {
        "queue": look.queue,
        "tickets": {ticket: json.loads(text) for ticket, text in look.tickets.items()},
        "lease": lease and {k: v for k, v in lease.items() if k not in ("secret", "hold_left", "granted_at")},
        "drain": look.text("drain"),
        "open": opened and opened["turn"],
        "arrivals": int(look.meta.get("arrivals", 0)), "fence": int(look.meta.get("fence", 0)),
        "tasks": look.meta.get("tasks", "0") == "1",
    }  # fmt: skip
