"""Correct ledgers from random events on the lock's machine, with the entries that the service adds."""

import random
from typing import Any

from sessiond.lock import events as ev
from sessiond.lock.machine import decide, restarted
from sessiond.lock.queries import timers
from sessiond.lock.rules import Kind, Times, rank_of
from sessiond.lock.state import Lock
from sessiond.session import views

Entries = list[dict[str, Any]]
LedgerEntries = list[ev.Entry]


class History:
    """A random history of one session. `entries` is its ledger."""

    def __init__(self, seed: int) -> None:
        self.dice, self.lock, self.entries = random.Random(seed), Lock(), Entries()
        self.epoch = self.version = 0
        self.turn: dict[str, Any] | None = None
        self.alive = self.stopping = False
        self.begin()

    def step(self, *entries: ev.Entry) -> None:
        """Append the entries of one step."""
        if entries:
            self.version += 1
            for event, data in entries:
                fixed = {"id": f"{self.epoch}-{len(self.entries)}", "epoch": self.epoch, "version": self.version}
                self.entries.append({**data, **fixed, "event": event})

    def begin(self) -> None:
        """Begin an owner's epoch. The agent of its predecessor is reaped."""
        self.lock, self.epoch = restarted(self.lock), self.epoch + 1
        self.step(("epoch", {"instance": "i", "predecessor": ""}), ("snapshot", views.snapshot(self.lock)))
        if self.alive or self.lock.open:
            self.do(ev.Reaped())

    def snapshot(self) -> None:
        """Append a snapshot, as the loop does after the entries of a step."""
        self.step(("denied", {"tool": "x", "why": "y"}), ("snapshot", views.snapshot(self.lock)))

    def do(self, event: ev.Event) -> None:
        """Make a step if the machine allows it."""
        before = self.lock
        try:
            step = decide(before, event)
        except ev.Refused:
            return
        self.lock = step.lock
        entries: LedgerEntries = list(step.ledger)
        if isinstance(event, ev.ForceRelease):
            entries.insert(0, ("force-release", {"fence": event.fence, "why": "x", "by": "y"}))
            if self.alive and not self.stopping and any(isinstance(e, ev.RecoverNow) for e in step.effects):
                entries.append(("agent-stopping", {"why": "forced"}))
                self.stopping = True
        if before.lease is not None and before.turn and self.lock.turn and self.lock.drain and not before.drain:
            self._cancel(entries)
        if isinstance(event, ev.Reaped):
            entries.insert(0, ("agent-reaped", {"exit": 0, "why": "x"}))
            self.alive = self.stopping = False
        if before.turn is not None and self.lock.turn is None:
            self._closed(entries, isinstance(event, ev.Reaped))
        if isinstance(event, ev.AcceptTurn):
            self._accepted(entries)
        self.step(*entries)
        if isinstance(event, ev.AcceptTurn):
            if not self.alive:
                self.alive = True
                self.step(("agent-started", {"guard": {"pid": 1}}))
            self.step(("turn-started", {"turn": event.turn}))

    def _accepted(self, entries: LedgerEntries) -> None:
        lease, turn = self.lock.lease, self.lock.turn
        assert lease is not None
        self.turn = {"turn": turn, "fence": lease.fence, "kind": lease.kind.value}
        entries.insert(0, ("turn-accepted", {**self.turn, "ticket": lease.ticket, "key": None, "attempt": 1}))
        if not self.alive:
            entries.append(("agent-starting", {"resume": False}))

    def _cancel(self, entries: LedgerEntries) -> None:
        if self.alive and not self.stopping and self.turn is not None and self.lock.drain is not None:
            self.turn["cancel"] = self.lock.drain.why.value
            entries.append(("interrupt", {"turn": self.turn["turn"], "why": self.turn["cancel"]}))

    def _closed(self, entries: LedgerEntries, reaped: bool) -> None:
        assert self.turn is not None
        cancel = self.turn.pop("cancel", None)
        end = {"outcome": "completed", "reason": None, "text_chars": 5}
        if reaped:
            end = {"outcome": "lost", "reason": "reaped", "text_chars": 0}
        elif cancel is not None:
            end = {"outcome": "cancelled", "reason": cancel, "text_chars": 0, "interrupt_to_ack_ms": 1.0}
        at = next((i for i, (event, _) in enumerate(entries) if event == "drained"), len(entries))
        entries.insert(at, ("turn-closed", {**self.turn, **end}))
        self.turn = None

    def random(self, number: int) -> None:
        """Make one random step."""
        dice, lock = self.dice, self.lock
        if dice.random() < 0.01:
            return self.begin()
        if dice.random() < 0.02:
            return self.snapshot()
        kind = dice.choice((Kind.HANDLER, Kind.HANDLER, Kind.WORKER))
        choices: list[ev.Event] = [ev.Take(f"t{number}", kind, rank_of(kind, dice.choice((3, 5))))]
        if lock.tickets:
            name, holder = dice.choice(list(lock.tickets)), dice.choice(("a", "b"))
            choices += [ev.Wait(name, holder)] * 5 + [ev.HangUp(name, holder), ev.WaitOver(name, holder)]
            choices += [ev.Withdraw(name, holder), ev.GiveUp(name, holder)]
        if lock.lease is not None:
            fence = lock.lease.fence
            choices += [ev.Release(fence), ev.ConfirmGrant(fence), ev.ForceRelease(fence)]
            if not self.stopping:
                choices += [ev.AcceptTurn(fence, f"tu{number}")] * 3
        if lock.drain is not None:
            choices.append(ev.ForceRelease(lock.drain.fence))
        if lock.turn is not None and not self.stopping:
            choices += [ev.TurnClosed(lock.turn)] * 3
        if self.alive:
            choices += [ev.TasksChanged(not lock.tasks)] * (3 if lock.tasks else 1) + [ev.Reaped()]
        due = timers(lock, Times())
        choices += [ev.Due(t) for t in due] + [ev.Due(t) for t in due if t.name == "head-wait"] * 6
        return self.do(dice.choice(choices))


def random_history(seed: int, steps: int = 400) -> Entries:
    """Return the ledger of `steps` random events."""
    history = History(seed)
    for number in range(steps):
        history.random(number)
    return history.entries
