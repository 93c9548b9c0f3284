"""Random histories of one session. After each step, the pure machines and a real Session with a real Redis must agree.

A history drives either both machines with a fake agent, or only the lock while the agent sleeps. A fault may happen
between any two steps, and in any step that writes.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import note
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from sessiond.agent import machine as agent_machine
from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock import machine, queries
from sessiond.lock.rules import Kind, Times
from sessiond.problems import Problem
from sessiond.session import views
from sessiond.session.agent.launch import workdir
from sessiond.session.callers.turn_record import TurnRecord
from sessiond.session.pipeline.plan import Plan
from sessiond.session.timers import SessionTimer
from sessiond.store import codec
from sessiond.store.store import Ahead, Behind, CommitResult, Deposed, NotHead, StoreStep
from sessiond.verify import Reader, Report, verify
from support.servers import Redis
from support.session.fake_agent import FakeAgent
from support.session.likely_events import lock_events, timers
from support.session.owned import Fault, Owner, RawRedis, StoredKeys
from support.session.reference import OTHER_EVENTS, Entries, KeptValue, Reference, read, same, stored, taken_at

FAULTS = (*(None for _ in range(100)), *Fault, *(Fault.WRONG_HEAD for _ in range(6)))
"""WRONG_HEAD is frequent because it only affects steps that grant."""
NUMBER = some.integers(0, 2**32 - 1)
AWAY = frozenset({Fault.LOST_COMMAND, Fault.KILLED_BEFORE, Fault.LOST_ANSWER, Fault.KILLED_AFTER})
NEVER_SENT = frozenset({Fault.LOST_COMMAND, Fault.KILLED_BEFORE})
STOPPING = Problem("stopping", 503, "The service is stopping; ask again")
NUMBERS = itertools.count(1)
Events = tuple[ev.Event | st.Event, ...]
LOCKS = frozenset(
    {
        "no_dual_ownership", "release_only_by_owner", "no_worker_while_handler_in_queue", "handler_fifo", "fence_grows",
        "one_holder_per_lease", "no_grant_while_draining", "force_release_frees", "every_present_ticket_is_served",
        "no_place_lost", "worker_fifo", "lapsed_bars_nobody", "supersede_is_one_way",
    }
)  # fmt: skip
"""The lock's invariants."""


class Histories(RuleBasedStateMachine):
    """One random history. `counts` counts each event over all histories of a test."""

    server: Redis
    place: Path
    counts: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        number = next(NUMBERS)
        self.name, self.instances = f"octo/h{number}", itertools.count(1)
        self.raw = RawRedis(self.server.url, self.name)
        self.reference, self.fake_agent, self.reader = Reference(), FakeAgent(), Reader()
        self.owners: list[Owner] = []
        self.owner: Owner
        self.tickets, self.turns = itertools.count(1), itertools.count(1)
        self.picks = 0
        self.seen: list[ev.Timer] = []
        self.epoch = self.top_fence = 0
        self.stored_keys = StoredKeys()
        """The keys after the last step. Only the owner changes them."""
        self.secret: str | None = None
        """The secret of the current lease."""
        self.older: tuple[StoredKeys, dict[str, bytes], dict[str, KeptValue]] | None = None
        self.predecessor_unknown = False
        """Whether the loop still waits for the agent of the previous owner to be gone."""
        self.redis_is_behind = False
        """Whether Redis lost writes and the owner has committed nothing since then."""

    @initialize(composed=some.booleans())
    def first_owner(self, composed: bool) -> None:
        self.composed = composed
        self.begin(self.instance("here"), Owner.claim, "")

    def teardown(self) -> None:
        try:
            if self.owners and not self.redis_is_behind:
                self.whole_ledger()
        finally:
            for owner in self.owners:
                owner.die()
            self.raw.redis.flushdb()
            self.raw.close()

    def whole_ledger(self) -> None:
        entries = self.raw.entries()
        assert self.violations(verify(entries)) == []
        versions = [entry["version"] for entry in entries]
        assert versions == sorted(versions)
        self.counts["histories"] += 1

    # ---- owners ------------------------------------------------------------------------------

    def instance(self, host: str) -> Owner:
        name = f"i{next(self.instances)}"
        made = Owner(self.server, self.name, name, self.place / host, host)
        self.owners.append(made)
        return made

    def begin(self, owner: Owner, claim: Callable[[Owner], int], predecessor: str) -> None:
        """Begin an epoch. The owner must load the state that the pure machine gives after a restart."""
        found = owner.store.read_state()
        assert machine.restarted(found.lock) == machine.restarted(self.reference.lock)
        epoch = claim(owner)
        assert epoch > self.epoch
        if not self.epoch:
            self.reference.agent = owner.session.reader.agent
        self.owner, self.epoch = owner, epoch
        self.reference.life += 1
        self.check_loaded(0, predecessor, [])

    def check_loaded(self, applied: int, predecessor: str, first: Entries) -> None:
        """Check that an owner has loaded the stored state."""
        settings = self.owner.settings
        entry = {"instance": settings.instance, "url": settings.url, "predecessor": predecessor}
        entries = [*first, ("epoch", entry), *self.reference.reload(self.epoch, str(workdir(settings, self.name)))]
        self.fake_agent = FakeAgent()
        self.predecessor_unknown = self.reference.agent.phase is st.Phase.STOPPING
        self.check(applied, entries)

    # ---- one step ----------------------------------------------------------------------------

    def do(
        self, *events: ev.Event | st.Event, fault: Fault | None = None, due: Any = None, front: Sequence[Any] = (),
        commands: Callable[[], Sequence[codec.RedisCommand]] = tuple, then: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Make one step in the session and in the reference. `due` is the timer of the loop that causes it.

        `then` runs before the reference applies the step."""
        expected = self.reference.decide(*events)
        broken = isinstance(expected, ev.InvariantBroken)
        if self.predecessor_unknown and broken:
            return
        spoilable = isinstance(expected, Plan) and not (self.predecessor_unknown or self.redis_is_behind)
        self.owner.store.fault = fault if spoilable else None
        applied = self.owner.store.applied
        staged = commands() if isinstance(expected, Plan) else ()
        answer = self.run(events, due, list(front), staged)
        hit = fault if spoilable and self.owner.store.fault is None else None
        self.owner.store.fault = None
        if hit in AWAY:
            self.owner.settle()
        if hit is not None:
            self.counts[f"fault: {hit.value}"] += 1
        if hit is Fault.WRONG_HEAD or broken:
            self.check_recovered(applied, "handler_fifo" if hit else expected.name)
        elif isinstance(expected, ev.Refused):
            assert (type(answer), str(answer)) == (type(expected), str(expected))
            self.check_unchanged()
            self.counts[f"refused: {type(expected).__name__}"] += 1
        else:
            self.check_committed(applied, events, hit, front, then)

    def run(self, events: Events, due: Any, front: list[Any], staged: Sequence[codec.RedisCommand]) -> Any:
        session = self.owner.session
        if due is not None and not self.predecessor_unknown:
            # The first call makes the loop check its timers. Otherwise it would detect a stall and extend all timers.
            self.owner.ask(lambda: None)
            session.pipeline.context.timers.restart(keep={due: 0.0})
            return self.owner.ask(lambda: None)

        def work() -> Any:
            try:
                return session.pipeline.step(*events, ledger=front, commands=staged)
            except ev.Refused as refused:
                return refused

        return work() if self.predecessor_unknown else self.owner.ask(work)

    def check_committed(
        self, applied: int, events: Events, hit: Fault | None, front: Sequence[Any], then: Callable[[], None]
    ) -> None:
        """Check that the loop made the whole step, or the right part of it if Redis was away.

        After an outage every deadline starts again. Only `max_hold` continues with its rest, which is zero here.
        """
        entries: Entries = []
        held_long = any(isinstance(event, ev.Due) and event.timer.name == "hold" for event in events)
        if hit in NEVER_SENT:
            entries += self.reference.absences()
        if hit not in NEVER_SENT or held_long:
            plan = self.reference.decide(*events)
            assert isinstance(plan, Plan)
            then()
            self.reference.take(plan, self.secret)
            self.count(plan, events)
            self.fake_agent.receive(plan.outputs, plan.agent)
            entries += [*front, *plan.ledger]
        if hit in AWAY - NEVER_SENT:
            entries += self.reference.absences()
        self.check(applied, entries, owner_lives=hit is not Fault.DIES)
        if hit is Fault.DIES:
            self.restart_after_death()

    def check_recovered(self, applied: int, invariant: str) -> None:
        """Check that an invalid step is reported, and that the same owner loads the stored state again."""
        self.counts["invalid steps"] += 1
        self.check_loaded(applied, "refused-step", [("refused", {"invariant": invariant})])

    def restart_after_death(self) -> None:
        """Start a new owner after one that died in a commit. Repeat the dead owner's step before and after that."""
        dead = self.owner
        assert not dead.session.running and dead.store.last is not None
        assert dead.store.commit(dead.store.last) is CommitResult.REPEATED
        self.check_unchanged()
        dead.close()
        self.begin(self.instance(dead.settings.host_name), Owner.claim, dead.settings.instance)
        with pytest.raises(Deposed):
            dead.store.commit(dead.store.last)
        self.check_unchanged()

    # ---- checks ------------------------------------------------------------------------------

    def check_unchanged(self) -> None:
        """Check that no stored key has changed."""
        assert self.raw.read_keys() == self.stored_keys

    def check(self, applied: int, entries: Entries, owner_lives: bool = True) -> None:
        """Check the session, the ledger and the keys after a step.

        `applied` is the number of steps before it. `entries` are the expected new entries without turn records.
        """
        reference, session = self.reference, self.owner.session
        if owner_lives:
            assert (session.reader.lock, session.reader.agent) == (reference.lock, reference.agent)
        before, keys, applied = self.stored_keys, self.raw.read_keys(), self.owner.store.applied - applied
        self.stored_keys = keys
        if not applied:
            assert not entries and keys == before
        if self.redis_is_behind and not applied:
            return
        stored_entries = self.raw.entries(before.ledger[1])
        if self.redis_is_behind:
            entries = [("restored", {"found": before.version}), self.snapshot, *entries]
            self.redis_is_behind, self.reader = False, Reader()
            self.read(self.raw.entries())
            self.counts["restored"] += 1
            assert keys.version == self.version + applied
        else:
            self.read(stored_entries)
            assert keys.version == before.version + applied
            assert all(before.version < entry["version"] <= keys.version for entry in stored_entries)
        assert keys.version == session.reader.version or not owner_lives
        assert same(plain(stored_entries)) == same(entries)
        self.check_fences(stored_entries)
        self.check_stored(keys)
        if reference.agent.phase is st.Phase.BROKEN:
            # The settings do not control the backoff. It must not end by itself here.
            rest: SessionTimer = ("agent", ("backoff", str(reference.agent.fails)))
            session.pipeline.context.timers.restart(keep={rest: 100_000.0})

    def read(self, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            self.reader.read(entry)
        assert self.violations(self.reader.report) == []

    def violations(self, report: Report) -> list[Any]:
        """Return the violations that count here. The lock alone has no turns, and the fake agent has no guard."""
        if self.composed:
            return [one for one in report.violations if one[0] != "one_agent_per_conversation"]
        return [one for one in report.violations if one[0] in LOCKS]

    def check_fences(self, stored_entries: list[dict[str, Any]]) -> None:
        for entry in stored_entries:
            if entry["event"] == "granted":
                assert entry["fence"] > max(self.top_fence, self.epoch * 2**20)
                self.top_fence = entry["fence"]

    def check_stored(self, keys: StoredKeys) -> None:
        """Compare the keys with the reference."""
        reference, settings = self.reference, self.owner.settings
        assert read(keys) == stored(reference.lock)
        lease = keys.text("lease")
        self.secret = lease and lease["secret"]
        if lease is not None:
            assert lease["ticket"] not in keys.queue and lease["secret"]
            assert (lease["hold_left"] is None) == (lease["kind"] == "worker")
        owner = {
            "epoch": str(self.epoch), "instance": settings.instance, "url": settings.url,
            "host": settings.host_name, "state_dir": str(settings.state_dir.resolve()),
        }  # fmt: skip
        assert {name: keys.meta.get(name) for name in owner} == owner
        agent = reference.agent
        assert keys.text("agent") == {
            "conversation": agent.conversation, "generation": agent.generation, "known": agent.known, "guard": None,
        }  # fmt: skip
        for name, kept in reference.kept.items():
            found = keys.text(name) or {}
            assert {field: found.get(field) for field in kept.value} == kept.value, name

    def count(self, plan: Plan, events: Events) -> None:
        for event in events:
            self.counts[f"{type(event).__module__.split('.')[1]}: {type(event).__name__}"] += 1
        for name, data in plan.ledger:
            more = data.get("reason") or data.get("how") or (name == "granted" and bool(data["skipped"]) and "skipping")
            self.counts[f"{name} {more}" if more else name] += 1
        grants = [name for name, _ in plan.ledger if name in ("ended", "granted")]
        self.counts["handoffs"] += grants == ["ended", "granted"]
        for output in plan.outputs:
            if isinstance(output, st.TurnOver):
                self.counts[f"turns {output.outcome.value}"] += 1

    # ---- random events -----------------------------------------------------------------------

    def pick(self, data: some.DataObject, options: Sequence[Any]) -> Any:
        """Return a random option. Each is equally likely, because Hypothesis alone would repeat choices often."""
        self.picks += 1
        chosen = random.Random(f"{data.draw(NUMBER)} {self.picks}").choice(options)
        note(f"{chosen}")
        return chosen

    @rule(data=some.data())
    def random_event(self, data: some.DataObject) -> None:
        wanted = [("lock", timer) for timer in timers(self.reference.lock)]
        wanted += [("agent", timer) for timer in agent_machine.timers(self.reference.agent, Times())]
        late = [timer for timer in self.seen if timer not in queries.timers(self.reference.lock, Times())]
        options = [(what, event) for weight, what, event in self.fake_agent.options() for _ in range(weight)]
        likely = {
            "request": 12, "timer": 3 if wanted else 0, "late timer": 1 if late else 0, "agent": 40 if options else 0,
            "command": int(self.composed), "mishap": 0 if self.redis_is_behind else 1,
        }  # fmt: skip
        what = self.pick(data, [what for what, weight in likely.items() for _ in range(weight)])
        fault = self.pick(data, FAULTS)
        match what:
            case "request":
                self.do_event(self.pick(data, lock_events(self.reference.lock, self.composed)), fault)
            case "timer":
                self.timer(*self.pick(data, wanted), fault)
            case "late timer":
                self.counts["late timers"] += 1
                self.do(ev.Due(self.pick(data, late)))
            case "agent":
                fake, (said, event) = self.fake_agent, self.pick(data, options)
                front: Entries = [("agent-started", {"guard": None})] if isinstance(event, st.Spawned) else []
                self.do(event, fault=fault, front=front, then=lambda: fake.choose(said, event))
            case "command":
                self.do(*self.pick(data, self.agent_commands()), fault=fault)
            case "mishap":
                mishaps = [
                    *BETWEEN,
                    *(Histories.predecessors_agent_is_gone for _ in range(6 if self.predecessor_unknown else 0)),
                ]
                self.pick(data, mishaps)(self, data)

    def timer(self, whose: str, timer: Any, fault: Fault | None) -> None:
        """Let a timer that the state needs expire."""
        if whose == "lock":
            self.seen.append(timer)
            self.counts[f"due: {timer.name}"] += 1
        self.do(ev.Due(timer) if whose == "lock" else st.Due(*timer), fault=fault, due=(whose, timer))

    def agent_commands(self) -> list[Events]:
        """Return possible commands to the agent, including the cancel of an unknown turn."""
        turn = self.reference.lock.turn
        if turn is not None:
            return [(st.Cancel(turn, "cancelled"),), (st.Cancel("tu-none", "cancelled"),), (st.Stop("restart"),)]
        return [(st.Stop("restart"),), (st.BeginConversation(f"c{next(self.turns)}", "asked"), st.Stop("conversation"))]

    def do_event(self, event: ev.Event, fault: Fault | None) -> None:
        match event:
            case ev.Take(ticket=""):
                event = replace(event, ticket=f"tk-{next(self.tickets)}")
                self.owner.session.reader.taken[event.ticket] = taken_at(event.ticket)
                self.do(event, fault=fault)
            case ev.AcceptTurn(fence=fence):
                self.accept(fence, fault)
            case ev.ForceRelease(fence=fence):
                asked = {"fence": fence, "why": "stuck", "by": "admin"}
                self.do(event, fault=fault, front=[("force-release", asked)])
            case _:
                self.do(event, fault=fault)

    def accept(self, fence: int, fault: Fault | None) -> None:
        session, lease = self.owner.session, self.reference.lock.lease
        turn = f"tu-{next(self.turns)}"
        events: list[ev.Event | st.Event] = [ev.AcceptTurn(fence, turn)]
        if self.composed and lease is not None:
            events.append(st.Begin(st.AgentTurn(turn, f"u-{turn}", "do it", lease.kind, "m", timeout=9_000.0)))
        ticket, kind = (lease.ticket, lease.kind) if lease else ("", Kind.HANDLER)
        record = TurnRecord(id=turn, fence=fence, ticket=ticket, kind=kind, conversation={})
        entry = {"turn": turn, "fence": fence, "ticket": ticket, "kind": kind.value}
        self.do(
            *events, fault=fault, front=[("turn-accepted", entry)],
            commands=lambda: session.pipeline.context.turns.accept(record)[1],
            then=lambda: self.reference.accept(turn, fence),
        )  # fmt: skip

    # ---- faults between two steps ------------------------------------------------------------

    def predecessors_agent_is_gone(self, _: Any = None) -> None:
        applied = self.owner.store.applied
        self.owner.settle()
        self.predecessor_unknown = False
        plan = self.reference.decide(st.Exited(None))
        assert isinstance(plan, Plan)
        self.reference.take(plan, None)
        self.count(plan, ())
        self.counts["reaped after a restart"] += 1
        self.fake_agent.receive(plan.outputs, plan.agent)
        self.check(applied, plan.ledger)

    def owner_dies(self, _: Any) -> None:
        dead = self.owner
        dead.die()
        self.counts["crashes"] += 1
        self.begin(self.instance(dead.settings.host_name), Owner.claim, dead.settings.instance)

    def owner_hands_over(self, _: Any) -> None:
        """Stop the owner as SIGTERM does: it stops the agent and releases the session."""
        old, applied = self.owner, self.owner.store.applied
        old.session.stop(STOPPING)
        assert not old.session.running
        plan = self.reference.decide(st.Stop("shutdown"))
        assert isinstance(plan, Plan)
        self.reference.take(plan, None)
        self.check(applied, plan.ledger)
        old.owners.release(self.name, self.epoch)
        old.close()
        self.stored_keys = self.raw.read_keys()
        self.counts["handovers"] += 1
        self.begin(self.instance(old.settings.host_name), Owner.claim, "")

    def another_instance_takes_over(self, _: Any) -> None:
        """Another instance takes over while the old owner lives. The old owner can change nothing any more."""
        old = self.owner
        host = "there" if old.settings.host_name == "here" else "here"
        self.begin(self.instance(host), Owner.claim_from_stalled_owner, old.settings.instance)
        if self.predecessor_unknown:
            self.predecessors_agent_is_gone()
        version = old.session.reader.version
        assert old.owners.renew(self.name, old.session.reader.epoch, version) == self.owner.settings.url
        old.ask(lambda: old.session.pipeline.step(ev.Take("tk-late", ev.Kind.HANDLER, 0)))
        old.owners.release(self.name, old.session.reader.epoch)
        self.check_unchanged()
        assert old.session.closed is not None
        assert (old.session.closed.type, old.session.closed.extra["owner_url"]) == (
            "not-owner",
            self.owner.settings.url,
        )
        old.close()
        self.counts["takeovers"] += 1

    def redis_forgets_the_script(self, _: Any) -> None:
        self.raw.redis.script_flush()
        self.counts["script forgotten"] += 1

    def remember_older_redis(self, _: Any) -> None:
        self.older = self.stored_keys, self.raw.dump(), dict(self.reference.kept)

    def redis_loses_everything(self, _: Any) -> None:
        self.redis_loses(StoredKeys(), {}, {})

    def redis_loses_its_last_writes(self, _: Any) -> None:
        if self.older is None:
            self.remember_older_redis(None)
        else:
            self.redis_loses(*self.older)

    def redis_loses(self, keys: StoredKeys, dump: dict[str, bytes], kept: dict[str, KeptValue]) -> None:
        if keys.version == self.stored_keys.version:
            return
        self.version, self.snapshot = (
            self.stored_keys.version,
            same([("snapshot", views.snapshot(self.reference.lock))])[0],
        )
        self.raw.restore(dump)
        self.stored_keys = keys
        self.reference.kept = {
            **kept,
            **{name: one for name, one in self.reference.kept.items() if one.by == self.reference.life},
        }
        self.redis_is_behind = True

    # ---- steps that the script must refuse ----------------------------------------------------

    def same_step_again(self, _: Any) -> None:
        last = self.owner.store.last
        assert last is not None and self.owner.store.commit(replace(last)) is CommitResult.REPEATED
        self.check_unchanged()
        self.counts["repeated"] += 1

    def step_that_does_not_fit(self, data: some.DataObject) -> None:
        """Send a step with a wrong version, or one that grants a ticket behind the head."""
        version, queue = self.owner.session.reader.version, self.reference.lock.queue
        writes = [("ZADD", "queue", "1", "tk-odd"), ("SET", "lease", "{}")]
        odd = StoreStep(self.epoch, version, "odd", writes, [("odd", {})])
        wrong: list[tuple[type[Exception], StoreStep]] = [
            (Ahead, replace(odd, version=version - 1)),
            (Behind, replace(odd, version=version + 1)),
            (NotHead, replace(odd, grant=("tk-nowhere", frozenset()), commands=[])),
        ]
        if len(queue) > 1:
            place = self.pick(data, range(1, len(queue)))
            ahead = [t.id for t in queue[:place]]
            named = frozenset(ahead) - {self.pick(data, ahead)}
            chosen = queue[place].id
            commands = [("ZREM", "queue", chosen), ("SET", "lease", "{}")]
            wrong.append((NotHead, replace(odd, commands=commands, grant=(chosen, named))))
        kind, step = self.pick(data, wrong)
        with pytest.raises(kind) as refused:
            self.owner.store.commit(step)
        assert refused.type is kind
        self.check_unchanged()
        self.counts[f"does not fit: {kind.__name__}"] += 1


BETWEEN = (
    Histories.remember_older_redis, Histories.owner_dies, Histories.owner_hands_over,
    Histories.another_instance_takes_over,
    Histories.redis_forgets_the_script, Histories.redis_loses_everything, Histories.same_step_again,
    Histories.step_that_does_not_fit, Histories.step_that_does_not_fit, *(Histories.redis_loses_its_last_writes,) * 4,
)  # fmt: skip


def plain(stored_entries: list[dict[str, Any]]) -> Entries:
    """Return entries as the machines make them: without ids, versions, turn records and the text of a refusal."""
    fixed = ("id", "event", "epoch", "version")
    found = [
        (e["event"], {k: v for k, v in e.items() if k not in fixed})
        for e in stored_entries
        if e["event"] not in OTHER_EVENTS
    ]
    return [(event, {k: v for k, v in data.items() if (event, k) != ("refused", "detail")}) for event, data in found]
