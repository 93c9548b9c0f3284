"""Every state that the lock's machine can reach, breadth first, within a budget of faults; each step is judged.

The judge shares nothing with the machine: it recounts from the tickets' scores, the event and the
ledger entries. Timers may run out at any moment at which the state asks for them.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from sessiond.lock import events as ev
from sessiond.lock import machine
from sessiond.lock.rules import Kind, Presence, Times, rank_of
from sessiond.lock.state import Lock, Ticket

Decide = Callable[[Lock, ev.Event], ev.Step]
Budget = dict[str, int]


class Violation(AssertionError):
    """An invariant does not hold; `name` is its name."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


@dataclass(frozen=True)
class Cast:
    """Who plays: the tickets' kinds and priorities, and how many faults of each kind and in all."""

    tickets: dict[str, tuple[Kind, int]]
    each: dict[str, int]
    faults: int
    turns: bool = True


@dataclass(frozen=True)
class Node:
    lock: Lock
    taken: frozenset[str] = frozenset()
    spent: tuple[tuple[str, int], ...] = ()

    def left(self, cast: Cast, fault: str) -> bool:
        spent = dict(self.spent)
        return spent.get(fault, 0) < cast.each.get(fault, 0) and sum(spent.values()) < cast.faults

    def pay(self, fault: str) -> tuple[tuple[str, int], ...]:
        spent = dict(self.spent)
        spent[fault] = spent.get(fault, 0) + 1
        return tuple(sorted(spent.items()))


def canonical(node: Node) -> object:
    """The same for states that differ in numbers only: fences and scores count by their order."""
    lock = node.lock
    order = {t.id: n for n, t in enumerate(sorted(lock.tickets.values(), key=lambda t: t.score))}
    tickets = tuple(sorted((t.id, order[t.id], replace(t, score=0)) for t in lock.tickets.values()))
    lease = lock.lease and replace(lock.lease, fence=0, restarts=0)
    drain = lock.drain and replace(lock.drain, fence=0)
    return tickets_key(tickets), lease, drain, lock.turn, lock.tasks, node.taken, node.spent


def tickets_key(tickets: tuple[tuple[str, int, Ticket], ...]) -> tuple[object, ...]:
    return tuple((i, n, t.holder, t.superseded, t.presence, t.passed, t.lapsed, t.losses) for i, n, t in tickets)


@dataclass
class Explorer:
    """One exploration. `decide` may be a broken machine: then `run` raises Violation."""

    cast: Cast
    decide: Decide = machine.decide
    states: int = 0
    transitions: int = 0
    seen: set[object] = field(default_factory=set)

    def run(self) -> None:
        first = Node(Lock(fence=1_000))
        todo = deque([first])
        self.seen.add(canonical(first))
        while todo:
            node = todo.popleft()
            self.states += 1
            self.refusals(node)
            self.served(node)
            for event, after in self.moves(node):
                self.transitions += 1
                if event is not None:
                    after = replace(after, lock=self.step(node.lock, event))
                key = canonical(after)
                if key not in self.seen:
                    self.seen.add(key)
                    todo.append(after)

    # ---- what can happen ---------------------------------------------------------------------

    def moves(self, node: Node) -> Iterator[tuple[ev.Event | None, Node]]:
        lock = node.lock
        for name, (kind, priority) in self.cast.tickets.items():
            if name not in node.taken:
                yield ev.Take(name, kind, rank_of(kind, priority), name), replace(node, taken=node.taken | {name})
        for ticket in lock.tickets.values():
            yield from self.of_ticket(node, ticket)
        yield from self.of_lease(node)
        for timer in machine.timers(lock, Times()):
            fault = {"lease": "loss", "claim": "loss", "absence": "lapse", "ticket-ttl": "old", "hold": "hold"}
            name = fault.get(timer.name)
            if name is None:
                yield ev.Due(timer), node
            elif node.left(self.cast, name):
                yield ev.Due(timer), replace(node, spent=node.pay(name))
        if node.left(self.cast, "restart"):
            begun = machine.restarted(lock)
            # An open turn is lost with its agent, when the recorded guard is gone: an event of its own.
            yield None, replace(node, lock=begun, spent=node.pay("restart"))

    def of_ticket(self, node: Node, ticket: Ticket) -> Iterator[tuple[ev.Event, Node]]:
        first, second = f"{ticket.id}-1", f"{ticket.id}-2"
        if ticket.holder in (None, first):
            yield ev.Wait(ticket.id, first), node
        if ticket.holder == second:
            yield ev.Wait(ticket.id, second), node
        elif ticket.holder == first and node.left(self.cast, "supersede"):
            yield ev.Wait(ticket.id, second), replace(node, spent=node.pay("supersede"))
        if ticket.presence is Presence.WAITING and ticket.holder is not None:
            if node.left(self.cast, "pause"):
                yield ev.WaitOver(ticket.id, ticket.holder), replace(node, spent=node.pay("pause"))
            if node.left(self.cast, "hang-up"):
                yield ev.HangUp(ticket.id, ticket.holder), replace(node, spent=node.pay("hang-up"))
        if node.left(self.cast, "withdraw"):
            paid = replace(node, spent=node.pay("withdraw"))
            yield ev.Withdraw(ticket.id), paid
            if ticket.holder is not None:
                yield ev.Withdraw(ticket.id, ticket.holder), paid
        if ticket.losses and ticket.holder is not None:
            yield ev.GiveUp(ticket.id, ticket.holder), node

    def of_lease(self, node: Node) -> Iterator[tuple[ev.Event, Node]]:
        lock = node.lock
        if lock.lease is not None:
            yield ev.Claim(lock.lease.fence), node
            yield ev.Release(lock.lease.fence), node
            if self.cast.turns and lock.turn is None:
                yield ev.AcceptTurn(lock.lease.fence, "turn"), node
            if node.left(self.cast, "force"):
                yield ev.ForceRelease(lock.lease.fence), replace(node, spent=node.pay("force"))
        if lock.drain is not None and not lock.drain.forced and node.left(self.cast, "force"):
            yield ev.ForceRelease(lock.drain.fence), replace(node, spent=node.pay("force"))
        if lock.turn is not None:
            yield ev.TurnClosed(lock.turn), node
            if node.left(self.cast, "reaped"):
                yield ev.Reaped(), replace(node, spent=node.pay("reaped"))

    # ---- the judge ---------------------------------------------------------------------------

    def step(self, old: Lock, event: ev.Event) -> Lock:
        try:
            step = self.decide(old, event)
        except ev.InvariantBroken as broken:
            raise Violation(broken.name, f"{event}: {broken}") from broken
        except ev.Refused:
            return old
        judge(old, event, step)
        return step.lock

    def refusals(self, node: Node) -> None:
        """What must be refused is."""
        lock = node.lock
        for ticket in lock.tickets.values():
            for gone in ticket.superseded:
                must_refuse(self.decide, lock, ev.Wait(ticket.id, gone), "supersede_is_one_way")
                must_refuse(self.decide, lock, ev.Withdraw(ticket.id, gone), "supersede_is_one_way")
        wrong = lock.fence + 7
        must_refuse(self.decide, lock, ev.Release(wrong), "release_only_by_owner")
        must_refuse(self.decide, lock, ev.ForceRelease(wrong), "release_only_by_owner")
        if lock.lease is None:
            must_refuse(self.decide, lock, ev.AcceptTurn(lock.fence, "turn"), "nothing_outlives_its_lease")

    def served(self, node: Node) -> None:
        """From here, with no new arrivals and holders that end, every present ticket is served: a walk that ends."""
        lock = node.lock
        for _ in range(40):
            if not any(t.present for t in lock.queue):
                return
            lock = self.step(lock, calm(lock))
        raise Violation("every_present_ticket_is_served", f"stuck: {lock}")


def calm(lock: Lock) -> ev.Event:
    """What surely happens next when nobody new comes."""
    if lock.turn is not None:
        return ev.TurnClosed(lock.turn)
    if lock.lease is not None:
        return ev.Release(lock.lease.fence)
    wanted = machine.timers(lock, Times())
    for name in ("head-wait", "absence"):
        for timer in wanted:
            if timer.name == name:
                return ev.Due(timer)
    raise Violation("every_present_ticket_is_served", f"free, nobody holds, no timer runs: {lock}")


def must_refuse(decide: Decide, lock: Lock, event: ev.Event, name: str) -> None:
    try:
        decide(lock, event)
    except ev.Refused:
        return
    raise Violation(name, f"{event} was not refused")


def judge(old: Lock, event: ev.Event, step: ev.Step) -> None:
    """Every invariant of the lock, for this one step."""
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
    closing = isinstance(event, (ev.TurnClosed, ev.Reaped))
    if (old.drain is not None and "drained" not in said) or (old.turn is not None and not closing):
        raise Violation("no_grant_while_draining", f"{event}: {data['ticket']}")
    ticket = new.tickets[new.lease.ticket]
    if new.lease.holder != ticket.holder or new.lease.holder in ticket.superseded or ticket.id != data["ticket"]:
        raise Violation("one_holder_per_lease", f"{event}: {new.lease.holder} holds {ticket.id} of {ticket.holder}")
    for other in queue.values():
        if other.score < ticket.score and (other.present or not (other.passed or other.lapsed)):
            name = "worker_fifo" if other.kind is Kind.WORKER else "handler_fifo"
            raise Violation(name, f"{event}: {ticket.id} over {other.id}")


def judge_end(old: Lock, event: ev.Event, step: ev.Step) -> None:
    """A lease ends for a reason that this event can give."""
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


def judge_places(old: Lock, event: ev.Event, step: ev.Step) -> None:
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
    """Rule 5: a free lock with somebody who could have it does not exist."""
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
