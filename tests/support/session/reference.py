"""The expected state of a session: both pure machines, and what Redis must contain. Shares no code with the store."""

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
from support.session.owned import StoredKeys

OTHER_EVENTS = frozenset({"turn-started", "turn-closed", "kept"})
"""Ledger events that do not come from a machine: turn records, and values kept beside the machines."""

Entries = list[tuple[str, dict[str, Any]]]


@dataclass
class KeptValue:
    """The expected fields of a record about something that ended, and the owner that wrote it."""

    value: dict[str, Any]
    by: int


@dataclass
class Reference:
    """The states of both machines, and everything derived from them."""

    lock: Lock = field(default_factory=Lock)
    agent: st.Agent = field(default_factory=lambda: st.Agent("none"))
    kept: dict[str, KeptValue] = field(default_factory=dict)
    opened: str | None = None
    """The turn whose record is open. While the agent sleeps, only an owner's restart ends its record."""
    life: int = 0
    """The number of the current owner."""

    def decide(self, *events: ev.Event | st.Event) -> Plan | Exception:
        """Return the plan of these events, or the error of an event that the machines refuse."""
        try:
            return compose(self.lock, self.agent, events)
        except (ev.Refused, ev.InvariantBroken) as refused:
            return refused

    def take(self, plan: Plan, secret: str | None) -> None:
        """Apply a committed plan. `secret` belongs to the lease before it."""
        self._ends(plan, secret)
        self._turns(plan)
        self.lock, self.agent = plan.lock, plan.agent

    def keep(self, name: str, **value: Any) -> None:
        before = self.kept[name].value if name in self.kept else {}
        self.kept[name] = KeptValue({**before, **value}, self.life)

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
        closed = False
        for output in plan.outputs:
            match output:
                case st.TurnStarted(turn=turn):
                    self.keep(f"turn:{turn}", state="started")
                case st.TurnOver(turn=turn, outcome=outcome):
                    self.close(turn, outcome.value)
                    closed = True
                case st.Gone() if not closed and self.opened is not None and plan.lock.turn is None:
                    self.close(self.opened, "lost")

    def accept(self, turn: str, fence: int) -> None:
        self.opened = turn
        self.keep(f"turn:{turn}", state="accepted", fence=fence)

    def close(self, turn: str, outcome: str) -> None:
        self.opened = None
        self.keep(f"turn:{turn}", state="closed", outcome=outcome)

    def absences(self) -> Entries:
        """Forget presence and passed-over marks, because Redis is back."""
        entries = [("absent", {"ticket": t.id}) for t in self.lock.tickets.values() if t.present or t.passed]
        self.lock = replace(self.lock, tickets={k: forgotten(t) for k, t in self.lock.tickets.items()})
        return entries

    def reload(self, epoch: int, cwd: str) -> Entries:
        """Load the stored state, as a new owner or as the same owner after an invalid step."""
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
    """Return entries as JSON gives them back. Sort adjacent `absent` entries by ticket."""
    entries_read = [(event, json.loads(orjson.dumps(data))) for event, data in entries]
    for event, data in entries_read:
        if event == "snapshot":
            data["tickets"].sort(key=lambda ticket: ticket["id"])
    runs = [list(run) for _, run in groupby(entries_read, key=lambda entry: entry[0] == "absent")]
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


def read(keys: StoredKeys) -> dict[str, Any]:
    """Return the same fields as Redis holds them."""
    lease, opened = keys.text("lease"), keys.text("open")
    return {
        "queue": keys.queue,
        "tickets": {ticket: json.loads(text) for ticket, text in keys.tickets.items()},
        "lease": lease and {k: v for k, v in lease.items() if k not in ("secret", "hold_left", "granted_at")},
        "drain": keys.text("drain"),
        "open": opened and opened["turn"],
        "arrivals": int(keys.meta.get("arrivals", 0)), "fence": int(keys.meta.get("fence", 0)),
        "tasks": keys.meta.get("tasks", "0") == "1",
    }  # fmt: skip
