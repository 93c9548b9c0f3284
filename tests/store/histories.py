"""Random histories of one session: the pure machines and a real Session over a real Redis must agree after each step.

A history either drives both machines (the agent is a puppet that mostly says what claude says) or the lock alone, with
an agent that sleeps. Between any two steps, and in any step that writes, something may fail.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from servers import Redis
from sessiond import record, views
from sessiond.agent import machine as agent_machine
from sessiond.agent import state as st
from sessiond.composition import Plan
from sessiond.launch import workdir
from sessiond.lock import events as ev
from sessiond.lock import machine, reading
from sessiond.lock.rules import Times
from sessiond.problems import Problem
from sessiond.store import Ahead, Behind, Deposed, NotHead, Outcome, Step
from sessiond.verify import Reader, verify
from store.happenings import lock_events
from store.owned import Fault, Look, Owner, Raw
from store.puppet import Puppet
from store.twin import BOOK, Entries, Kept, Twin, read, same, stored, taken_at

HARMLESS = 14
FAULTS = some.sampled_from([*(None for _ in range(HARMLESS)), *Fault])
AWAY = frozenset({Fault.LOST_COMMAND, Fault.KILLED_BEFORE, Fault.LOST_ANSWER, Fault.KILLED_AFTER})
NEVER_SENT = frozenset({Fault.LOST_COMMAND, Fault.KILLED_BEFORE})
STOPPING = Problem("stopping", 503, "The service is stopping; ask again")
NUMBERS = itertools.count(1)
Events = tuple[ev.Event | st.Event, ...]


class Histories(RuleBasedStateMachine):
    """`counts` says what has happened, over all histories of a test."""

    server: Redis
    place: Path
    counts: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        number = next(NUMBERS)
        self.name, self.instances = f"octo/h{number}", itertools.count(1)
        self.raw = Raw(self.server.url, self.name)
        self.twin, self.puppet, self.reader = Twin(), Puppet(), Reader()
        self.lives: list[Owner] = []
        self.owner: Owner
        self.tickets, self.turns = itertools.count(1), itertools.count(1)
        self.seen: list[ev.Timer] = []
        self.epoch = self.top_fence = 0
        self.mark: tuple[Look, dict[str, bytes], dict[str, Kept]] | None = None
        self.limbo = False
        """The agent of the owner before is not known to be gone yet; the loop has not run since."""
        self.behind = False
        """Redis lost writes, and nothing was committed since."""

    @initialize(composed=some.booleans())
    def first_owner(self, composed: bool) -> None:
        self.composed = composed
        self.begin(self.instance("here"), Owner.claim, "")

    def teardown(self) -> None:
        try:
            if self.lives and not self.behind:
                self.whole_ledger()
        finally:
            for owner in self.lives:
                owner.die()
            self.raw.redis.flushdb()
            self.raw.close()

    def whole_ledger(self) -> None:
        entries = self.raw.entries()
        assert verify(entries).violations == []
        versions = [entry["version"] for entry in entries]
        assert versions == sorted(versions)
        self.counts["histories"] += 1

    # ---- owners ------------------------------------------------------------------------------

    def instance(self, host: str) -> Owner:
        name = f"i{next(self.instances)}"
        made = Owner(self.server, self.name, name, self.place / host, host)
        self.lives.append(made)
        return made

    def begin(self, owner: Owner, claim: Callable[[Owner], int], predecessor: str) -> None:
        """A new epoch: what it reads is what the pure machine says of a restart."""
        before, found = self.raw.look(), owner.store.read_state()
        assert machine.restarted(found.lock) == machine.restarted(self.twin.lock)
        epoch = claim(owner)
        assert epoch > self.epoch
        if not self.epoch:
            self.twin.agent = owner.session.standing.agent
        self.owner, self.epoch = owner, epoch
        self.twin.life += 1
        self.loaded(before, 0, predecessor, [])

    def loaded(self, before: Look, applied: int, predecessor: str, first: Entries) -> None:
        """The stored state was taken: by a new owner, or again by this one."""
        settings = self.owner.settings
        entry = {"instance": settings.instance, "url": settings.url, "predecessor": predecessor}
        entries = [*first, ("epoch", entry), *self.twin.reload(self.epoch, str(workdir(settings, self.name)))]
        self.puppet = Puppet()
        self.limbo = self.twin.agent.phase is st.Phase.STOPPING
        self.check(before, applied, entries)

    # ---- one step ----------------------------------------------------------------------------

    def do(
        self, *events: ev.Event | st.Event, fault: Fault | None = None, due: Any = None, front: Sequence[Any] = (),
        commands: Callable[[], Sequence[record.Command]] = tuple, then: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """One step in both worlds. `due`: by that deadline of the loop. `then` is done before the twin takes it."""
        expected = self.twin.decide(*events)
        broken = isinstance(expected, ev.InvariantBroken)
        if self.limbo and broken:
            return
        spoilable = isinstance(expected, Plan) and not (self.limbo or self.behind)
        self.owner.store.fault = fault if spoilable else None
        before, applied = self.raw.look(), self.owner.store.applied
        staged = commands() if isinstance(expected, Plan) else ()
        answer = self.run(events, due, list(front), staged)
        hit = fault if spoilable and self.owner.store.fault is None else None
        self.owner.store.fault = None
        if hit in AWAY:
            self.owner.settle()
        if hit is not None:
            self.counts[f"fault: {hit.value}"] += 1
        if hit is Fault.WRONG_HEAD or broken:
            self.recovered(before, applied, "handler_fifo" if hit else expected.name)
        elif isinstance(expected, ev.Refused):
            assert (type(answer), str(answer)) == (type(expected), str(expected))
            assert self.raw.look() == before
            self.counts[f"refused: {type(expected).__name__}"] += 1
        else:
            self.committed(before, applied, events, hit, due is not None, front, then)

    def run(self, events: Events, due: Any, front: list[Any], staged: Sequence[record.Command]) -> Any:
        session = self.owner.session
        if due is not None and not self.limbo:
            # The first makes the loop look at its clock: a loop that seems to have stood still gives everybody more time.
            self.owner.ask(lambda: None)
            session.deadlines.restart(keep={due: 0.0})
            return self.owner.ask(lambda: None)

        def work() -> Any:
            try:
                return session.steps.step(*events, ledger=front, commands=staged)
            except ev.Refused as refused:
                return refused

        return work() if self.limbo else self.owner.ask(work)

    def committed(
        self, before: Look, applied: int, events: Events, hit: Fault | None, by_loop: bool, front: Sequence[Any],
        then: Callable[[], None],
    ) -> None:  # fmt: skip
        """What the loop has done of it: everything, or with Redis away that much."""
        entries: Entries = []
        if hit in NEVER_SENT:
            entries += self.twin.absences()
        if hit not in NEVER_SENT or by_loop:
            plan = self.twin.decide(*events)
            assert isinstance(plan, Plan)
            lease = before.text("lease") if not self.behind else {"secret": self.secret}
            then()
            self.twin.take(plan, lease and lease["secret"])
            self.count(plan, events)
            self.puppet.hear(plan.outputs, plan.agent)
            entries += [*front, *plan.ledger]
        if hit in AWAY - NEVER_SENT:
            entries += self.twin.absences()
        self.check(before, applied, entries, lives=hit is not Fault.DIES)
        if hit is Fault.DIES:
            self.succeeded()

    def recovered(self, before: Look, applied: int, invariant: str) -> None:
        """A step that must not be: it is named, and the same owner takes the stored state again."""
        self.counts["steps that must not be"] += 1
        self.loaded(before, applied, "refused-step", [("refused", {"invariant": invariant})])

    def succeeded(self) -> None:
        """The owner died after a commit whose answer it never had; the step is asked once more, by the dead and later."""
        dead, before = self.owner, self.raw.look()
        assert not dead.session.running and dead.store.last is not None
        assert dead.store.commit(dead.store.last) is Outcome.REPEATED
        assert self.raw.look() == before
        dead.close()
        self.begin(self.instance(dead.settings.host_name), Owner.claim, dead.settings.instance)
        before = self.raw.look()
        with pytest.raises(Deposed):
            dead.store.commit(dead.store.last)
        assert self.raw.look() == before

    # ---- what must hold ----------------------------------------------------------------------

    def check(self, before: Look, applied: int, entries: Entries, lives: bool = True) -> None:
        """`applied`: how many steps were, before; `entries`: what the ledger must say now, apart from turns' records."""
        twin, session = self.twin, self.owner.session
        if lives:
            assert (session.standing.lock, session.standing.agent) == (twin.lock, twin.agent)
        look, applied = self.raw.look(), self.owner.store.applied - applied
        if not applied:
            assert not entries and look == before
        if self.behind and not applied:
            return
        told = self.raw.entries(before.ledger[1])
        if self.behind:
            entries = [("restored", {"found": before.version}), self.snapshot, *entries]
            self.behind, self.reader = False, Reader()
            self.read(self.raw.entries())
            self.counts["restored"] += 1
            assert look.version == self.version + applied
        else:
            self.read(told)
            assert look.version == before.version + applied
            assert all(before.version < entry["version"] <= look.version for entry in told)
        assert look.version == session.commits.version or not lives
        assert same(plain(told)) == same(entries)
        self.fences(told)
        self.stored(look)

    def read(self, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            self.reader.read(entry)
        assert self.reader.report.violations == []

    def fences(self, told: list[dict[str, Any]]) -> None:
        for entry in told:
            if entry["event"] == "granted":
                assert entry["fence"] > max(self.top_fence, self.epoch * 2**20)
                self.top_fence = entry["fence"]

    def stored(self, look: Look) -> None:
        """The keys as they are, against the twin."""
        twin, settings = self.twin, self.owner.settings
        assert read(look) == stored(twin.lock)
        lease = look.text("lease")
        if lease is not None:
            assert lease["ticket"] not in look.queue and lease["secret"]
            assert (lease["hold_left"] is None) == (lease["kind"] == "worker")
        owner = {
            "epoch": str(self.epoch), "instance": settings.instance, "url": settings.url,
            "host": settings.host_name, "state_dir": str(settings.state_dir.resolve()),
        }  # fmt: skip
        assert {name: look.meta.get(name) for name in owner} == owner
        agent = twin.agent
        assert look.text("agent") == {
            "conversation": agent.conversation, "generation": agent.generation, "known": agent.known, "guard": None,
        }  # fmt: skip
        for name, kept in twin.kept.items():
            found = look.text(name) or {}
            assert {field: found.get(field) for field in kept.value} == kept.value, name

    def count(self, plan: Plan, events: Events) -> None:
        for event in events:
            self.counts[f"{type(event).__module__.split('.')[1]}: {type(event).__name__}"] += 1
        for name, data in plan.ledger:
            more = data.get("reason") or data.get("how") or (name == "granted" and bool(data["skipped"]) and "skipping")
            self.counts[f"{name} {more}" if more else name] += 1
        grants = [name for name, _ in plan.ledger if name in ("ended", "granted")]
        self.counts["handoffs"] += grants == ["ended", "granted"]
        self.counts["turns over"] += sum(isinstance(o, st.TurnOver) for o in plan.outputs)

    # ---- what happens ------------------------------------------------------------------------

    @rule(data=some.data(), fault=FAULTS, many=some.integers(1, 6))
    def requests(self, data: some.DataObject, fault: Fault | None, many: int) -> None:
        for left in reversed(range(many)):
            events = [e for weight, e in lock_events(self.twin.lock, self.composed) for _ in range(weight)]
            self.one(data.draw(some.sampled_from(events), "event"), None if left else fault)

    @rule(data=some.data(), fault=FAULTS)
    def timer(self, data: some.DataObject, fault: Fault | None) -> None:
        """One that the state asks for runs out."""
        wanted: list[Any] = [("lock", t) for t in reading.timers(self.twin.lock, Times())]
        wanted += [("agent", t) for t in agent_machine.timers(self.twin.agent, Times())]
        if wanted:
            whose, timer = data.draw(some.sampled_from(wanted), "timer")
            if whose == "lock":
                self.seen.append(timer)
                self.counts[f"due: {timer.name}"] += 1
            event = ev.Due(timer) if whose == "lock" else st.Due(timer[0])
            self.do(event, fault=fault, due=(whose, timer))

    @precondition(lambda self: self.seen)
    @rule(data=some.data())
    def late_timer(self, data: some.DataObject) -> None:
        timer = data.draw(some.sampled_from(self.seen), "timer")
        if timer not in reading.timers(self.twin.lock, Times()):
            self.counts["late timers"] += 1
            self.do(ev.Due(timer))

    @precondition(lambda self: self.composed and self.puppet.words())
    @rule(data=some.data(), fault=FAULTS, many=some.integers(1, 9))
    def agent_says(self, data: some.DataObject, fault: Fault | None, many: int) -> None:
        for left in reversed(range(many)):
            words = [(what, event) for weight, what, event in self.puppet.words() for _ in range(weight)]
            if not words:
                return
            what, event = data.draw(some.sampled_from(words), "word")
            puppet = self.puppet
            self.do(event, fault=None if left else fault, then=lambda p=puppet, w=what, e=event: p.said(w, e))
            if self.puppet is not puppet:
                return

    @precondition(lambda self: self.composed)
    @rule(data=some.data(), fault=FAULTS)
    def agent_is_told(self, data: some.DataObject, fault: Fault | None) -> None:
        turn = self.twin.lock.turn or "tu-none"
        told: list[Events] = [(st.Cancel(turn, "cancelled"),), (st.Stop("restart"),)]
        if self.twin.lock.turn is None:
            told.append((st.Afresh(f"c{next(self.turns)}", "asked"), st.Stop("conversation")))
        self.do(*data.draw(some.sampled_from(told), "told"), fault=fault)

    def one(self, event: ev.Event, fault: Fault | None) -> None:
        match event:
            case ev.Take(ticket=""):
                event = replace(event, ticket=f"tk-{next(self.tickets)}")
                self.owner.session.standing.taken[event.ticket] = taken_at(event.ticket)
                self.do(event, fault=fault)
            case ev.AcceptTurn(fence=fence):
                self.accept(fence, fault)
            case _:
                self.do(event, fault=fault)

    def accept(self, fence: int, fault: Fault | None) -> None:
        session, lease = self.owner.session, self.twin.lock.lease
        turn = f"tu-{next(self.turns)}"
        events: list[ev.Event | st.Event] = [ev.AcceptTurn(fence, turn)]
        if self.composed and lease is not None:
            events.append(st.Begin(st.Turn(turn, f"u-{turn}", "do it", lease.kind, "m", timeout=9_000.0)))
        book = {"id": turn, "turn": turn, "key": None, "state": "accepted", "fence": fence}
        book["kind"] = lease.kind.value if lease else None
        self.do(
            *events, fault=fault, front=[("turn-accepted", {"turn": turn, "fence": fence})],
            commands=lambda: session.turns.accept(book),
            then=lambda: self.twin.keep(f"turn:{turn}", state="accepted", fence=fence),
        )  # fmt: skip

    # ---- what fails between two steps --------------------------------------------------------

    @precondition(lambda self: self.limbo)
    @rule()
    def predecessors_agent_is_gone(self) -> None:
        before, applied = self.raw.look(), self.owner.store.applied
        self.owner.settle()
        self.limbo = False
        plan = self.twin.decide(st.Exited(None))
        assert isinstance(plan, Plan)
        self.twin.take(plan, None)
        self.count(plan, ())
        self.counts["reaped after a restart"] += 1
        self.puppet.hear(plan.outputs, plan.agent)
        self.check(before, applied, plan.ledger)

    @precondition(lambda self: not self.behind)
    @rule(data=some.data())
    def mishap(self, data: some.DataObject) -> None:
        """Between two steps."""
        data.draw(some.sampled_from(MISHAPS), "mishap")(self)

    def owner_dies(self) -> None:
        dead = self.owner
        dead.die()
        self.counts["crashes"] += 1
        self.begin(self.instance(dead.settings.host_name), Owner.claim, dead.settings.instance)

    def owner_hands_over(self) -> None:
        """SIGTERM: the agent is stopped, the session given up."""
        old, before, applied = self.owner, self.raw.look(), self.owner.store.applied
        old.session.stop(STOPPING)
        assert not old.session.running
        plan = self.twin.decide(st.Stop("shutdown"))
        assert isinstance(plan, Plan)
        self.twin.take(plan, None)
        self.check(before, applied, plan.ledger)
        old.owners.release(self.name, self.epoch)
        old.close()
        self.counts["handovers"] += 1
        self.begin(self.instance(old.settings.host_name), Owner.claim, "")

    def another_instance_takes_over(self) -> None:
        """The old owner lives on; whatever it does, nothing changes."""
        old = self.owner
        host = "there" if old.settings.host_name == "here" else "here"
        self.begin(self.instance(host), Owner.claim_elsewhere, old.settings.instance)
        if self.limbo:
            self.predecessors_agent_is_gone()
        before = self.raw.look()
        assert (
            old.owners.renew(self.name, old.session.commits.epoch, old.session.commits.version)
            == self.owner.settings.url
        )
        old.ask(lambda: old.session.steps.step(ev.Take("tk-late", ev.Kind.HANDLER, 0)))
        old.owners.release(self.name, old.session.commits.epoch)
        assert self.raw.look() == before
        assert old.session.closed is not None
        assert (old.session.closed.type, old.session.closed.extra["owner_url"]) == (
            "not-owner",
            self.owner.settings.url,
        )
        old.close()
        self.counts["takeovers"] += 1

    def redis_forgets_the_script(self) -> None:
        self.raw.redis.script_flush()
        self.counts["script forgotten"] += 1

    def remember(self) -> None:
        self.mark = self.raw.look(), self.raw.dump(), dict(self.twin.kept)

    def redis_loses_everything(self) -> None:
        self.redis_loses(Look(), {}, {})

    def redis_loses_its_last_writes(self) -> None:
        self.redis_loses(*(self.mark or (Look(), {}, {})))

    def redis_loses(self, look: Look, dump: dict[str, bytes], kept: dict[str, Kept]) -> None:
        now = self.raw.look()
        if look.version == now.version:
            return
        lease = now.text("lease")
        self.secret = lease and lease["secret"]
        self.version, self.snapshot = now.version, same([("snapshot", views.snapshot(self.twin.lock))])[0]
        self.raw.restore(dump)
        self.twin.kept = {**kept, **{name: one for name, one in self.twin.kept.items() if one.by == self.twin.life}}
        self.behind = True

    # ---- what the script must refuse ---------------------------------------------------------

    def same_step_again(self) -> None:
        before, last = self.raw.look(), self.owner.store.last
        assert last is not None and self.owner.store.commit(replace(last)) is Outcome.REPEATED
        assert self.raw.look() == before
        self.counts["repeated"] += 1

    @precondition(lambda self: not self.behind)
    @rule(data=some.data())
    def step_that_does_not_fit(self, data: some.DataObject) -> None:
        """Of another version, or one that grants over the head."""
        before, version, queue = self.raw.look(), self.owner.session.commits.version, self.twin.lock.queue
        writes = [("ZADD", "queue", "1", "tk-odd"), ("SET", "lease", "{}")]
        odd = Step(self.epoch, version, "odd", writes, [("granted", {})])
        wrong: list[tuple[type[Exception], Step]] = [
            (Ahead, replace(odd, version=version - 1)),
            (Behind, replace(odd, version=version + 1)),
            (NotHead, replace(odd, grant=("tk-nowhere", frozenset()), commands=[])),
        ]
        if len(queue) > 1:
            place = data.draw(some.integers(1, len(queue) - 1), "place")
            ahead = [t.id for t in queue[:place]]
            named = frozenset(ahead) - {data.draw(some.sampled_from(ahead), "not named")}
            chosen = queue[place].id
            commands = [("ZREM", "queue", chosen), ("SET", "lease", "{}")]
            wrong.append((NotHead, replace(odd, commands=commands, grant=(chosen, named))))
        kind, step = data.draw(some.sampled_from(wrong), "step")
        with pytest.raises(kind) as refused:
            self.owner.store.commit(step)
        assert refused.type is kind and self.raw.look() == before
        self.counts[f"does not fit: {kind.__name__}"] += 1


MISHAPS = (
    Histories.remember, Histories.owner_dies, Histories.owner_hands_over, Histories.another_instance_takes_over,
    Histories.redis_forgets_the_script, Histories.redis_loses_everything, Histories.redis_loses_its_last_writes,
    Histories.same_step_again,
)  # fmt: skip


def plain(told: list[dict[str, Any]]) -> Entries:
    """Entries as the machines say them: without ids, versions, turns' records, and the words of a refusal."""
    fixed = ("id", "event", "epoch", "version")
    found = [(e["event"], {k: v for k, v in e.items() if k not in fixed}) for e in told if e["event"] not in BOOK]
    return [(event, {k: v for k, v in data.items() if (event, k) != ("refused", "detail")}) for event, data in found]
