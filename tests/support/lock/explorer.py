"""Explores every state that the lock's machine can reach, breadth first, and judges each step.

A budget limits the counted faults. The judge shares no code with the machine: it uses only the tickets' scores, the
event and the ledger entries. A timer may expire in any state that needs it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sessiond.lock import events as ev
from sessiond.lock import machine, queries
from sessiond.lock.rules import Kind, Presence, Times, rank_of
from sessiond.lock.state import Lock, Ticket

Decide = Callable[[Lock, ev.Event], ev.Decision]


class Violation(AssertionError):
    """An invariant does not hold. `name` is its name."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


Demand = tuple[Kind, int]
"""The kind and the priority of a ticket."""

COUNTED = frozenset({"supersede", "pause", "lapse", "loss", "tasks"})
"""Faults that leave a lasting mark in the state or multiply the states. Other faults may happen any number of times."""


@dataclass(frozen=True)
class Scenario:
    """The tickets, the limits of the counted faults, and how many of the faults may happen together."""

    demands: tuple[Demand, ...]
    faults: Mapping[str, int] = field(default_factory=dict)
    together: int = 1
    turns: bool = True


@dataclass(frozen=True, slots=True)
class Scene:
    """The lock, and the demands that have no ticket yet."""

    lock: Lock
    untaken: tuple[Demand, ...]

    def take(self, demand: Demand, lock: Lock) -> "Scene":
        left = list(self.untaken)
        left.remove(demand)
        return Scene(lock, tuple(left))


Key = tuple[tuple[int, ...], tuple[Demand, ...]]
PRESENCE = {Presence.ABSENT: 0, Presence.GRACE: 1, Presence.WAITING: 2}


def canonical(scene: Scene) -> Key:
    """Return a key that is equal for states that differ only in the names of tickets, scores and fences.

    Tickets count by their order in the queue, holders as first or second. The key leaves out what only the ledger and
    the agent use: a drain's reason, and how many restarts a lease has lived through.
    """
    lock, lease, drain = scene.lock, scene.lock.lease, scene.lock.drain
    key = [(0 if drain is None else 1 + drain.forced) * 4 + (lock.turn is not None) * 2 + lock.tasks]
    for ticket in sorted(lock.tickets.values(), key=score):
        key.append(
            (ticket.score >> 42) << 12 | nth(ticket.holder) << 10 | PRESENCE[ticket.presence] << 8
            | ticket.passed << 7 | ticket.lapsed << 6 | ticket.losses << 4
        )  # fmt: skip
        if lease is not None and lease.ticket == ticket.id:
            key[-1] |= nth(lease.holder) << 1 | lease.claimed | 8
    return tuple(key), scene.untaken


def score(ticket: Ticket) -> int:
    return ticket.score


def nth(holder: str | None) -> int:
    return 0 if holder is None else int(holder[-1])


class Budget:
    """The counted faults that have happened, as a bit set. The n-th fault of a kind has its own bit."""

    def __init__(self, scenario: Scenario) -> None:
        self.together = scenario.together
        marks = [(fault, n) for fault in sorted(scenario.faults) for n in range(scenario.faults[fault])]
        self.bits = {fault: [1 << i for i, mark in enumerate(marks) if mark[0] == fault] for fault in COUNTED}

    def pay(self, spent: int, fault: str) -> int | None:
        """Return the bits after one more fault of this kind, or None if the budget does not allow it."""
        if fault not in COUNTED:
            return spent
        if spent.bit_count() < self.together:
            for bit in self.bits[fault]:
                if not spent & bit:
                    return spent | bit
        return None


@dataclass
class Explorer:
    """One exploration. With a broken machine as `decide`, `run` raises Violation.

    Each state of the lock is judged once, however it was reached. The order is breadth first by the number of counted
    faults. A state that is reached again with a superset of earlier faults is skipped.
    """

    scenario: Scenario
    decide: Decide = machine.decide
    states: int = 0
    """The number of states of the lock. All transitions of each are judged."""
    transitions: int = 0
    _moves: dict[tuple[Key, str], tuple[Key, ...]] = field(default_factory=dict)
    _scenes: dict[Key, Scene] = field(default_factory=dict)
    _seen: dict[Key, list[int]] = field(default_factory=dict)
    _served: set[Key] = field(default_factory=set)

    def run(self) -> None:
        budget, first = Budget(self.scenario), self.remember(Scene(Lock(fence=1_000), self.scenario.demands))
        layer = [(first, 0)]
        while layer:
            todo, layer = deque(layer), []
            while todo:
                key, spent = todo.popleft()
                if any(less & ~spent == 0 for less in self._seen.get(key, ())):
                    continue
                self._seen.setdefault(key, []).append(spent)
                todo.extend((after, spent) for after in self.expand(key, ""))
                for fault in COUNTED:
                    paid = budget.pay(spent, fault)
                    if paid is not None:
                        layer.extend((after, paid) for after in self.expand(key, fault))

    def remember(self, scene: Scene) -> Key:
        key = canonical(scene)
        self._scenes.setdefault(key, scene)
        return key

    def expand(self, key: Key, fault: str) -> Iterable[Key]:
        """Judge the steps from a state by this counted fault, or by all other events for "". Return the next states."""
        found = self._moves.get((key, fault))
        if found is None:
            scene = self._scenes[key]
            if not fault:
                self.states += 1
                self.check_refusals(scene.lock)
                self.check_served(scene)
            found = self._moves[key, fault] = tuple(dict.fromkeys(self.moves(scene, fault)))
        return found

    # ---- possible events ---------------------------------------------------------------------

    def moves(self, scene: Scene, fault: str) -> Iterator[Key]:
        lock = scene.lock
        for kind, event in (*self.of_tickets(lock), *self.of_lease(lock), *self.of_timers(lock)):
            if (kind if kind in COUNTED else "") == fault:
                yield self.remember(Scene(self.step(lock, event), scene.untaken))
        if fault:
            return
        for demand in dict.fromkeys(scene.untaken):
            name = f"t{lock.arrivals}"
            after = self.step(lock, ev.Take(name, demand[0], rank_of(*demand), name))
            yield self.remember(scene.take(demand, after))
        # A restart does not lose the open turn: it is lost when its agent is reaped, which is an event of its own.
        yield self.remember(Scene(machine.restarted(lock), scene.untaken))

    # Each method yields events with the name of their fault, "" for none.

    def of_tickets(self, lock: Lock) -> Iterator[tuple[str, ev.Event]]:
        for ticket in lock.tickets.values():
            first, second = f"{ticket.id}-1", f"{ticket.id}-2"
            if ticket.holder != second:
                yield "", ev.Wait(ticket.id, first)
            if ticket.holder is not None:
                yield "supersede" if ticket.holder == first else "", ev.Wait(ticket.id, second)
            if ticket.presence is Presence.WAITING:
                yield "pause", ev.WaitOver(ticket.id, str(ticket.holder))
            if ticket.present:
                yield "hang-up", ev.HangUp(ticket.id, str(ticket.holder))
            yield "withdraw", ev.Withdraw(ticket.id)
            if ticket.holder is not None:
                yield "withdraw", ev.Withdraw(ticket.id, ticket.holder)
            if ticket.losses and ticket.holder is not None:
                yield "", ev.GiveUp(ticket.id, ticket.holder)

    def of_lease(self, lock: Lock) -> Iterator[tuple[str, ev.Event]]:
        if lock.lease is not None:
            yield "", ev.ConfirmGrant(lock.lease.fence)
            yield "", ev.Release(lock.lease.fence)
            if self.scenario.turns and lock.turn is None:
                yield "", ev.AcceptTurn(lock.lease.fence, "turn")
            yield "force", ev.ForceRelease(lock.lease.fence)
            yield "tasks", ev.TasksChanged(True)
        if lock.drain is not None and not lock.drain.forced:
            yield "force", ev.ForceRelease(lock.drain.fence)
        if lock.tasks:
            yield "", ev.TasksChanged(False)
        if lock.turn is not None:
            yield "", ev.TurnClosed(lock.turn)
        if lock.open:
            yield "reaped", ev.Reaped()

    def of_timers(self, lock: Lock) -> Iterator[tuple[str, ev.Event]]:
        names = {"lease": "loss", "claim": "loss", "absence": "lapse"}
        for timer in queries.timers(lock, Times()):
            yield names.get(timer.name, timer.name), ev.Due(timer)

    # ---- the judge ---------------------------------------------------------------------------

    def step(self, old: Lock, event: ev.Event) -> Lock:
        self.transitions += 1
        try:
            step = self.decide(old, event)
        except ev.InvariantBroken as broken:
            raise Violation(broken.name, f"{event}: {broken}") from broken
        except ev.Refused:
            return old
        judge(old, event, step)
        return step.lock

    def check_refusals(self, lock: Lock) -> None:
        """Check that the machine refuses what it must refuse."""
        for ticket in lock.tickets.values():
            for gone in ticket.superseded:
                must_refuse(self.decide, lock, ev.Wait(ticket.id, gone), "supersede_is_one_way")
                must_refuse(self.decide, lock, ev.Withdraw(ticket.id, gone), "supersede_is_one_way")
        wrong = lock.fence + 7
        must_refuse(self.decide, lock, ev.Release(wrong), "release_only_by_owner")
        must_refuse(self.decide, lock, ev.ForceRelease(wrong), "release_only_by_owner")
        if lock.lease is None:
            must_refuse(self.decide, lock, ev.AcceptTurn(lock.fence, "turn"), "nothing_outlives_its_lease")

    def check_served(self, scene: Scene) -> None:
        """Check that every present ticket gets its lease if no ticket arrives and every holder releases."""
        walked: list[Key] = []
        for _ in range(40):
            key = canonical(scene)
            if key in self._served or not any(t.present for t in scene.lock.queue):
                self._served.update(walked)
                return
            walked.append(key)
            scene = Scene(self.step(scene.lock, next_quiet_event(scene.lock)), scene.untaken)
        raise Violation("every_present_ticket_is_served", f"stuck: {scene.lock}")


def next_quiet_event(lock: Lock) -> ev.Event:
    """Return the event that happens next if no new ticket arrives."""
    if lock.turn is not None:
        return ev.TurnClosed(lock.turn)
    if lock.tasks and lock.lease is None:
        return ev.TasksChanged(False)
    if lock.lease is not None:
        return ev.Release(lock.lease.fence)
    wanted = queries.timers(lock, Times())
    for name in ("head-wait", "absence"):
        for timer in wanted:
            if timer.name == name:
                return ev.Due(timer)
    raise Violation("every_present_ticket_is_served", f"the lock is free and no timer runs: {lock}")


def must_refuse(decide: Decide, lock: Lock, event: ev.Event, name: str) -> None:
    try:
        decide(lock, event)
    except ev.Refused:
        return
    raise Violation(name, f"{event} was not refused")


def judge(old: Lock, event: ev.Event, step: ev.Decision) -> None:
    """Check every invariant of the lock for this step."""
    new = step.lock
    said = [name for name, _ in step.ledger]
    grants = [data for name, data in step.ledger if name == "granted"]
    if (new.lease is not None and new.drain is not None) or len(grants) > 1:
        raise Violation("no_dual_ownership", f"{event}: {new}")
    if old.lease is not None and (new.lease is None or new.lease.fence != old.lease.fence) and "ended" not in said:
        raise Violation("no_dual_ownership", f"{event}: a lease is gone and did not end")
    queue = {t.id: t for t in new.tickets.values() if new.lease is None or t.id != new.lease.ticket}
    for data in grants:
        judge_grant(old, event, new, data, queue, said)
    judge_end(old, event, step)
    judge_places(old, event, step)
    bars = [t for t in queue.values() if t.kind is Kind.HANDLER and not t.lapsed]
    if new.lease is not None and new.lease.kind is Kind.WORKER and bars:
        raise Violation("no_worker_while_handler_in_queue", f"{event}: {bars[0].id}")
    if new.lease is None and new.drain is None and new.turn is None and not new.tasks:
        judge_free(event, queue)


def judge_grant(
    old: Lock, event: ev.Event, new: Lock, data: dict[str, object], queue: dict[str, Ticket], said: list[str]
) -> None:
    if new.lease is None or data["fence"] != new.lease.fence or new.lease.fence <= old.fence:
        raise Violation("fence_grows", f"{event}: {data['fence']} follows {old.fence}")
    closing = isinstance(event, (ev.TurnClosed, ev.TasksChanged, ev.Reaped))
    if (old.drain is not None and "drained" not in said) or (old.turn is not None and not closing):
        raise Violation("no_grant_while_draining", f"{event}: {data['ticket']}")
    ticket = new.tickets[new.lease.ticket]
    if new.lease.holder != ticket.holder or new.lease.holder in ticket.superseded or ticket.id != data["ticket"]:
        raise Violation("one_holder_per_lease", f"{event}: {new.lease.holder} holds {ticket.id} of {ticket.holder}")
    for other in queue.values():
        if other.score < ticket.score and (other.present or not (other.passed or other.lapsed)):
            name = "worker_fifo" if other.kind is Kind.WORKER else "handler_fifo"
            raise Violation(name, f"{event}: {ticket.id} over {other.id}")


def judge_end(old: Lock, event: ev.Event, step: ev.Decision) -> None:
    """Check that a lease ends for a reason that this event can cause."""
    for name, data in step.ledger:
        if name != "ended":
            continue
        lease = old.lease
        due = event.timer if isinstance(event, ev.Due) else ev.Timer("", "")
        allowed = {
            "released": isinstance(event, ev.Release),
            "forced": isinstance(event, ev.ForceRelease),
            "withdrawn": isinstance(event, ev.Withdraw) and lease is not None and event.ticket == lease.ticket,
            "expired": due.name == "lease" and lease is not None and lease.claimed,
            "unclaimed": due.name == "claim" and lease is not None and not lease.claimed,
            "hold-limit": due.name == "hold",
            "preempted": lease is not None and lease.kind is Kind.WORKER and isinstance(event, (ev.Take, ev.Wait)),
        }
        if lease is None or data["fence"] != lease.fence or not allowed[data["reason"]]:
            raise Violation("release_only_by_owner", f"{event}: {data}")
    if isinstance(event, ev.ForceRelease):
        held = old.lease is not None and old.lease.fence == event.fence
        if held and step.lock.lease is not None and step.lock.lease.fence == event.fence:
            raise Violation("force_release_frees", f"{event}: it still holds")


def judge_places(old: Lock, event: ev.Event, step: ev.Decision) -> None:
    ended = {data["ticket"]: data["reason"] for name, data in step.ledger if name == "ticket-ended"}
    for ticket in old.tickets.values():
        now = step.lock.tickets.get(ticket.id)
        if now is not None and now.score != ticket.score:
            raise Violation("no_place_lost", f"{event}: {ticket.id} has another score")
        if now is not None and not now.superseded >= ticket.superseded:
            raise Violation("supersede_is_one_way", f"{event}: {ticket.id} forgot a superseded holder")
        if now is not None and now.lapsed and now.present:
            raise Violation("lapsed_bars_nobody", f"{event}: {ticket.id} is present and lapsed")
        if now is None and not may_end(event, ticket, ended.get(ticket.id)):
            raise Violation("no_place_lost", f"{event}: {ticket.id} is gone, {ended.get(ticket.id)}")


def may_end(event: ev.Event, ticket: Ticket, reason: str | None) -> bool:
    due = event.timer.name if isinstance(event, ev.Due) else ""
    return {
        "released": isinstance(event, (ev.Release, ev.GiveUp)),
        "withdrawn": isinstance(event, ev.Withdraw) and event.ticket == ticket.id,
        "forced": isinstance(event, ev.ForceRelease),
        "hold-limit": due == "hold",
        "lost-thrice": due in ("lease", "claim") and ticket.losses == 2,
        "too-old": due == "ticket-ttl",
    }.get(reason or "", False)


def judge_free(event: ev.Event, queue: dict[str, Ticket]) -> None:
    """Check that the lock is not free while a ticket could be granted (rule 5)."""
    bars = any(t.kind is Kind.HANDLER and not t.lapsed for t in queue.values())
    lapsed = False
    for ticket in sorted(queue.values(), key=lambda t: t.score):
        if ticket.present:
            if ticket.kind is Kind.HANDLER or not bars:
                name = "lapsed_bars_nobody" if lapsed else "every_present_ticket_is_served"
                raise Violation(name, f"{event}: {ticket.id} could have the free lock")
            return
        if not (ticket.passed or ticket.lapsed):
            return
        lapsed = lapsed or ticket.lapsed
