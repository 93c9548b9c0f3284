"""A ledger from a real run, unchanged and altered. The checker reports each broken rule at its entry."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis as redis_library

from sessiond.client import Client, Lease
from sessiond.verify import verify
from support.lock.alterations import detected
from support.lock.histories import Entries
from support.servers import TESTS, Redis, Sessiond, eventually, scripted_env
from support.size import FULL

SESSION = "octo/hello"
Start = Callable[..., Sessiond]
SHORT = {"head_wait": 0.2, "poll_grace": 10.0, "absence": 1.0, "claim_window": 10.0}


def wait(client: Client, ticket: str, holder: str, seconds: float) -> dict[str, Any]:
    body = {"holder": holder, "wait": seconds}
    return dict(client.transport.call("POST", f"/tickets/{ticket}/wait", session=SESSION, body=body, timeout=60).body)


def renew(client: Client, granted: dict[str, Any], method: str = "POST", path: str = "/lease/renew") -> None:
    client.transport.call(method, path, session=SESSION, secret=granted["lease"]["secret"])


class RecordedRun:
    """One run with every kind of event of a session."""

    def __init__(self, service: Sessiond, server: Redis) -> None:
        self.service, self.server, self.client = service, server, service.client()
        self.worker = self.client.take(SESSION, kind="worker", key="task")["id"]

    def turns(self) -> None:
        """Run two turns of one lease, one of them cancelled, and background tasks that the lease's end stops."""
        with self.client.lease(SESSION, key="turns") as lease:
            assert lease.turn("#say one").result().completed
            self.cut(lease, lambda turn: self.client.transport.call("DELETE", f"/turns/{turn}", session=SESSION))
            assert lease.turn("#bg 60s\n#say two").result().completed
            eventually(lambda: self.client.view(SESSION)["agent"]["tasks"])

    def cut(self, lease: Lease, cancel: Callable[[str], object]) -> None:
        turn = lease.turn("#tokens 100000\n#pace 5ms")
        eventually(lambda: self.client.turn(SESSION, turn.id)["state"] == "started")
        cancel(turn.id)
        assert turn.result().outcome in ("cancelled", "lost")

    def preemption(self) -> None:
        """Two handlers preempt the worker's turn. They are served in order, then the worker continues."""
        with self.client.lease(SESSION, kind="worker", key="task") as lease:
            taken: list[dict[str, Any]] = []
            self.cut(lease, lambda _: taken.extend(self.client.take(SESSION, key=k) for k in ("A", "B")))
            lease.abandon()
        for ticket in taken:
            self.serve(ticket["id"])

    def serve(self, ticket: str, holder: str = "p") -> None:
        granted = wait(self.client, ticket, holder, 15)
        assert granted["state"] == "granted"
        renew(self.client, granted)
        renew(self.client, granted, "DELETE", "/lease")

    def superseding(self) -> None:
        """During a lease, another holder supersedes a wait that timed out. Then both tickets are served."""
        a, b = (self.client.take(SESSION, key=key)["id"] for key in ("S", "T"))
        granted = wait(self.client, a, "p", 15)
        renew(self.client, granted)
        assert wait(self.client, b, "old", 0)["state"] == "waiting"
        assert wait(self.client, b, "new", 0)["state"] == "waiting"
        renew(self.client, granted, "DELETE", "/lease")
        self.serve(b, "new")

    def passing(self) -> None:
        """An absent handler is passed over, then lapses. Only then does the worker get the lock."""
        absent, there = (self.client.take(SESSION, key=key)["id"] for key in ("absent", "there"))
        self.serve(there)
        granted = wait(self.client, self.worker, "w", 15)
        renew(self.client, granted)
        self.client.force_release(SESSION, granted["lease"]["fence"], "a test")
        self.client.withdraw(SESSION, absent)
        self.worker = self.client.take(SESSION, kind="worker", key="task")["id"]

    def workers(self) -> None:
        """Two workers wait behind one."""
        one, two, three = (self.client.take(SESSION, kind="worker", key=key)["id"] for key in ("x", "y", "z"))
        self.client.withdraw(SESSION, self.worker)
        granted = wait(self.client, one, "p", 15)
        renew(self.client, granted)
        for ticket in (two, three):
            assert wait(self.client, ticket, "p", 0)["state"] == "waiting"
        renew(self.client, granted, "DELETE", "/lease")
        for ticket in (two, three):
            self.serve(ticket)
        self.worker = self.client.take(SESSION, kind="worker", key="task")["id"]

    def faults(self) -> None:
        """An operator restarts the agent and begins a new conversation, Redis loses everything, the owner is killed."""
        self.client.restart_agent(SESSION)
        self.client.new_conversation(SESSION)
        with self.client.lease(SESSION, key="lost") as lease:
            assert lease.turn("#say three").result().completed
            kept = self.entries()
            with redis_library.Redis.from_url(self.server.url) as connection:
                connection.flushall()
            self.client.take(SESSION, key="again")
            self.refill(kept)
        with self.client.lease(SESSION, key="killed") as lease:
            turn = lease.turn("#tokens 100000\n#pace 5ms")
            eventually(lambda: self.client.turn(SESSION, turn.id)["state"] == "started")
            self.service.kill9()
            self.service.start()
            lease.abandon()
        eventually(lambda: self.client.view(SESSION)["turn"] is None, 20)

    def refill(self, kept: Entries) -> None:
        """Rebuild the stream as if Redis had lost only its last second: the kept entries, then the new ones."""
        key, since = f"sessiond:{{{SESSION}}}:ledger", self.entries()
        with redis_library.Redis.from_url(self.server.url) as connection:
            connection.delete(key)
            connection.sadd("sessiond:sessions", SESSION)
            last = kept[-1]["version"] - 2
            for e in [*(e for e in kept if e["version"] <= last), *since]:
                data = {k: v for k, v in e.items() if k not in ("id", "at", "epoch", "version", "event")}
                fixed: dict[Any, Any] = {n: e[n] for n in ("event", "epoch", "version")}
                connection.xadd(key, {**fixed, "data": json.dumps(data)}, id=e["id"])

    def entries(self) -> Entries:
        return self.client.ledger(SESSION)


def record(service: Sessiond, server: Redis) -> Entries:
    run = RecordedRun(service, server)
    for scene in (run.turns, run.preemption, run.superseding, run.workers, run.passing, run.faults):
        scene()
    return run.entries()


# ---- alterations: each returns the id of the entry that now breaks the rule -------------------


class LedgerSearch:
    """A correct ledger, with methods that find its entries."""

    def __init__(self, honest: Entries) -> None:
        self.entries = copy.deepcopy(honest)

    def at(self, event: str, **having: Any) -> Iterator[int]:
        """Yield the positions of these entries."""
        for number, e in enumerate(self.entries):
            if e["event"] == event and all(e.get(k) == v for k, v in having.items()):
                yield number

    def step(self, number: int) -> range:
        """Return the positions of all entries of this entry's step."""
        mine = [n for n, e in enumerate(self.entries) if e["version"] == self.entries[number]["version"]]
        return range(mine[0], mine[-1] + 1)

    def has(self, step: range, *events: str) -> bool:
        return set(events) <= {self.entries[n]["event"] for n in step}

    def blank(self, *numbers: int) -> None:
        """Replace these entries with neutral ones, so that no version is missing."""
        for number in numbers:
            self.entries[number] = {
                **{k: self.entries[number][k] for k in ("id", "at", "epoch", "version")}, "event": "denied",
            }  # fmt: skip

    def cut_step(self, number: int) -> str:
        """Remove the rest of the entry's step. Return the id of the entry, which is now the step's last."""
        self.blank(*[n for n in self.step(number) if n > number])
        return str(self.entries[self.step(number)[-1]]["id"])

    def id(self, number: int) -> str:
        return str(self.entries[number]["id"])


def no_dual_ownership(f: LedgerSearch) -> str:
    ended = next(n for n in f.at("ended", reason="released") if f.has(f.step(n), "granted"))
    over = [n for n in f.step(ended) if f.entries[n]["event"] in ("ended", "ticket-ended")]
    granted = next(n for n in f.step(ended) if f.entries[n]["event"] == "granted")
    f.blank(*over)
    return f.id(granted)


def release_only_by_owner(f: LedgerSearch) -> str:
    ended = next(f.at("ended", reason="released"))
    f.entries[ended]["fence"] += 1
    return f.id(ended)


def no_worker_while_handler_in_queue(f: LedgerSearch) -> str:
    """Remove the end of the worker's lease that the handler's ticket causes."""
    ended = next(n for n in f.at("ended", reason="preempted") if f.entries[f.step(n)[0]]["event"] == "taken")
    return f.cut_step(f.step(ended)[0])


def _other_granted(f: LedgerSearch, kind: str) -> str:
    """Grant the second of two tickets in place of the first."""
    keys = {"handler": ("A", "B"), "worker": ("y", "z")}[kind]
    first, second = (f.entries[next(f.at("taken", key=key))] for key in keys)
    granted = next(f.at("granted", ticket=first["ticket"]))
    f.entries[granted] |= {"ticket": second["ticket"], "score": second["score"]}
    return f.id(granted)


def handler_fifo(f: LedgerSearch) -> str:
    return _other_granted(f, "handler")


def worker_fifo(f: LedgerSearch) -> str:
    return _other_granted(f, "worker")


def fence_grows(f: LedgerSearch) -> str:
    first, second, *_ = f.at("granted")
    f.entries[second]["fence"] = f.entries[first]["fence"]
    return f.id(second)


def one_holder_per_lease(f: LedgerSearch) -> str:
    granted = list(f.at("granted"))[2]
    f.entries[granted]["holder"] = "somebody"
    return f.id(granted)


def no_grant_while_draining(f: LedgerSearch) -> str:
    drained = next(n for n in f.at("drained") if f.has(f.step(n), "turn-closed"))
    later = next(n for n in f.at("granted") if n > drained)
    f.blank(drained)
    return f.id(later)


def force_release_frees(f: LedgerSearch) -> str:
    return f.cut_step(next(f.at("force-release")))


def every_present_ticket_is_served(f: LedgerSearch) -> str:
    granted = next(n for n in f.at("granted", kind="handler") if f.has(f.step(n), "ended"))
    f.blank(granted)
    return f.id(f.step(granted)[-1])


def no_place_lost(f: LedgerSearch) -> str:
    back = next(f.at("back"))
    f.entries[back]["score"] += 1
    return f.id(back)


def lapsed_bars_nobody(f: LedgerSearch) -> str:
    granted = next(n for n in f.at("granted", kind="worker") if f.has(f.step(n), "lapsed"))
    f.blank(granted)
    return f.id(f.step(granted)[-1])


def supersede_is_one_way(f: LedgerSearch) -> str:
    superseded = next(f.at("superseded", by="new"))
    present = next(n for n in f.at("present", holder="new") if n > superseded)
    f.entries[present]["holder"] = "old"
    return f.id(present)


def single_writer(f: LedgerSearch) -> str:
    accepted = list(f.at("turn-accepted"))[3]
    f.entries[accepted]["fence"] -= 1
    return f.id(accepted)


def one_agent_per_conversation(f: LedgerSearch) -> str:
    reaped = next(f.at("agent-reaped"))
    again = next(n for n in f.at("agent-starting") if n > reaped)
    f.blank(reaped)
    return f.id(again)


def one_turn_open(f: LedgerSearch) -> str:
    closed = next(f.at("turn-closed", outcome="completed"))
    again = next(n for n in f.at("turn-accepted") if n > closed)
    f.blank(closed)
    return f.id(again)


def result_belongs_to_its_turn(f: LedgerSearch) -> str:
    first, second, *_ = f.at("turn-closed")
    f.entries[second]["turn"] = f.entries[first]["turn"]
    return f.id(second)


def cancel_stays_in_its_turn(f: LedgerSearch) -> str:
    interrupt = next(f.at("interrupt"))
    f.entries[interrupt]["turn"] = f.entries[next(f.at("turn-closed"))]["turn"]
    return f.id(interrupt)


def closed_means_nothing_can_come(f: LedgerSearch) -> str:
    drained = next(n for n in f.at("drained") if f.has(f.step(n), "turn-closed"))
    f.blank(*[n for n in f.step(drained) if f.entries[n]["event"] == "turn-closed"])
    return f.id(drained)


def empty_result_is_not_completion(f: LedgerSearch) -> str:
    closed = next(f.at("turn-closed", outcome="completed"))
    f.entries[closed]["text_chars"] = 0
    return f.id(closed)


def nothing_outlives_its_lease(f: LedgerSearch) -> str:
    interrupt = next(f.at("interrupt", why="preempted"))
    f.blank(interrupt)
    return f.id(f.step(interrupt)[-1])


ALTERATIONS: list[Callable[[LedgerSearch], str]] = [
    no_dual_ownership, release_only_by_owner, no_worker_while_handler_in_queue, handler_fifo, worker_fifo, fence_grows,
    one_holder_per_lease, no_grant_while_draining, force_release_frees, every_present_ticket_is_served, no_place_lost,
    lapsed_bars_nobody, supersede_is_one_way, single_writer, one_agent_per_conversation, one_turn_open,
    result_belongs_to_its_turn, cancel_stays_in_its_turn, closed_means_nothing_can_come,
    empty_result_is_not_completion, nothing_outlives_its_lease,
]  # fmt: skip


def test_a_recorded_ledger_has_no_violation_and_each_altered_one_has(
    redis_server: Redis, sessiond: Start, tmp_path: Path, matrix: Callable[..., None], figures: Callable[[str], None]
) -> None:
    entries = record(sessiond(scripted_env(**SHORT)), redis_server)
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    report = verify(entries)
    assert report.violations == [], tmp_path
    kinds = {e["event"] for e in entries}
    assert {"passed-over", "lapsed", "tasks", "superseded", "restored", "force-release", "interrupt"} <= kinds
    for alter in ALTERATIONS:
        found = LedgerSearch(entries)
        where = alter(found)
        violations = verify(found.entries).violations
        if FULL:
            event = next(e["event"] for e in found.entries if e["id"] == where)
            matrix(
                "altered ledgers",
                invariant=alter.__name__,
                entry=event,
                text=violations[0][2][:100] if violations else "",
            )
        assert (alter.__name__, where) in [violation[:2] for violation in violations], (
            alter.__name__,
            where,
            violations[:3],
        )
    trimmed(entries)
    figures(f"{len(entries)} entries, {report.handoffs} handoffs, {len(kinds)} kinds of entry, nothing wrong")
    noticed = detected(entries, 60 if FULL else 10, 5)
    figures("noticed: " + ", ".join(f"{name} {n}/{of}" for name, (n, of) in noticed.items()))


def trimmed(entries: Entries) -> None:
    """Check that the ledger is clean from any entry on, and that an alteration after its first snapshot is found."""
    dice = random.Random(1)
    for cut in range(1, len(entries), 1 if FULL else 9):
        rest = entries[cut:]
        assert verify(rest).violations == [], cut
        first = next((n for n, e in enumerate(rest) if e["event"] == "snapshot"), len(rest))
        if behind := [n for n, e in enumerate(rest) if e["event"] == "granted" and n > first]:
            at = dice.choice(behind)
            altered = [*rest[:at], {**rest[at], "fence": rest[at]["fence"] + 1}, *rest[at + 1 :]]
            assert ("fence_grows", rest[at]["id"]) in [v[:2] for v in verify(altered).violations]


def test_every_invariant_has_an_alteration() -> None:
    page = (TESTS.parent / "docs" / "concepts" / "invariants.md").read_text()
    listed = page.partition("## Invariants")[2].partition("##")[0]
    assert {alter.__name__ for alter in ALTERATIONS} == set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", listed))
