"""The owner loop: one greenlet, one inbox a session. It alone decides, commits, then acts, in that order.

Request greenlets only put calls into the inbox and wait. A step is: the machines decide (pure), one
script commits, then lines are written and callers told. What the commit refuses was never done.
"""

import contextlib
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import gevent
import structlog
from gevent.event import AsyncResult
from gevent.queue import Empty, Queue

from sessiond import record, views
from sessiond.agent import machine as agent_machine
from sessiond.agent import protocol
from sessiond.agent import state as st
from sessiond.agentlink import AgentLink, FromAgent
from sessiond.commits import Commits, NotApplied
from sessiond.composition import Plan, compose
from sessiond.deadlines import Deadlines
from sessiond.desk import Parked
from sessiond.hooks import hold
from sessiond.launch import workdir
from sessiond.lock import events as ev
from sessiond.lock import machine as lock_machine
from sessiond.lock.rules import Kind, Presence, first_fence
from sessiond.lock.state import Lock
from sessiond.observe import Observer
from sessiond.problems import Problem
from sessiond.refusals import away, ended, problem_of, superseded
from sessiond.settings import Settings
from sessiond.slots import Slots
from sessiond.store import Deposed, Store
from sessiond.turnbook import TurnBook, now_text

log = structlog.get_logger("sessiond.session")

STALL_SECONDS = 2.0
"""The loop woke this much late: the process stood still, and every deadline gets its time again."""
LONGEST_SLEEP = 1.0
SNAPSHOT_EVERY = 500
SHUT_SECONDS = 4.0


class _Answered(Exception):
    """The caller was told already; the step is dropped."""


@dataclass(slots=True)
class Call:
    """A request in the inbox: what to do in the loop, and where its answer goes."""

    work: Callable[[], Any]
    reply: "AsyncResult[Any]"
    at: float
    parked: Parked | None = None


class Session:
    """One session as its owner runs it. Methods without an underscore are for request greenlets."""

    def __init__(self, name: str, settings: Settings, store: Store, epoch: int, version: int, slots: Slots) -> None:
        self.name = name
        self._observer = Observer(name)
        self._idle_since = time.monotonic()
        self.settings = settings
        self.store = store
        self.inbox: Queue[Call | FromAgent | None] = Queue()
        self.lock = Lock()
        self.agent = st.Agent(conversation=str(uuid.uuid4()))
        self.generation = 1
        self.commits = Commits(store, epoch, version, self._everything)
        self.link = AgentLink(name, settings, slots, self, self.inbox.put)
        self.secret: record.LeaseExtras | None = None
        self.taken: dict[str, str] = {}
        self.turns = TurnBook(store)
        self.parked: dict[str, Parked] = {}
        self.deadlines = Deadlines()
        self.closed: Problem | None = None
        self.away_since: float | None = None
        self._stored_agent: dict[str, Any] | None = None
        self._snapshot_at = 0
        self._call: Call | None = None
        self._doubted = False
        self._cause = time.monotonic()
        self._hold_left: float | None = None
        self._greenlet: gevent.Greenlet[..., None] | None = None

    # ---- the inbox ---------------------------------------------------------------------------

    def call(self, work: Callable[[], Any]) -> Any:
        """Runs `work` in the owner loop and returns its answer. Raises Problem."""
        self._door()
        call = Call(work, AsyncResult(), time.monotonic())
        self.inbox.put(call)
        return call.reply.get()

    def park(self, ticket: str, holder: str) -> Parked:
        """Makes `holder` present on the ticket; the answer comes through what is returned."""
        self._door()
        parked = Parked(ticket, holder, self._leave)
        call = Call(lambda: self._wait(parked), AsyncResult(), time.monotonic(), parked)
        self.inbox.put(call)
        return parked

    def _leave(self, parked: Parked, gone: bool) -> None:
        call = Call(lambda: self._left(parked, gone), AsyncResult(), time.monotonic(), None)
        self.inbox.put(call)

    def _door(self) -> None:
        if self.closed is not None:
            raise self.closed
        if self.away_since is not None:
            raise away()

    def doubt(self) -> None:
        """The owner record could not be renewed: the loop shall look after Redis. From any greenlet."""
        if self.away_since is None:
            self._doubted = True
            self.inbox.put(None)

    @property
    def running(self) -> bool:
        """Whether the owner loop runs."""
        return self._greenlet is not None and not self._greenlet.dead

    def may_sleep(self) -> float | None:
        """Seconds for which the agent has been idle; None while it is needed."""
        idle = self.agent.phase is st.Phase.IDLE and self.agent.turn is None and not self.agent.busy
        return time.monotonic() - self._idle_since if idle else None

    def sleep_now(self) -> None:
        """Another session needs the slot: the agent is put to sleep if it still is idle."""
        work = lambda: self.may_sleep() is not None and self.step(st.Stop("sleep"))  # noqa: E731
        self.inbox.put(Call(work, AsyncResult(), time.monotonic()))

    # ---- life --------------------------------------------------------------------------------

    def start(self, predecessor: str) -> None:
        """Loads what is stored and runs the loop. Raises store errors; then nothing runs."""
        self._load(predecessor)
        self._greenlet = gevent.spawn(self._run)

    def stop(self, problem: Problem) -> None:
        """Answers everybody with `problem`, ends the agent, ends the loop; returns when all are gone."""
        if self.closed is None:
            self.closed = problem
            self.inbox.put(None)
        if self._greenlet is not None:
            self._greenlet.join(timeout=8.0)

    def _load(self, predecessor: str) -> None:
        stored = self.store.read_state()
        old, agent = stored.lock, stored.agent or {}
        self.generation = int(agent.get("generation", 1))
        guard = agent.get("guard")
        self.secret, self.taken = stored.extras.lease, dict(stored.extras.taken)
        conversation = str(agent.get("conversation") or uuid.uuid4())
        lock = lock_machine.restarted(old)
        lock = replace(lock, fence=max(lock.fence, first_fence(self.commits.epoch)))
        self.agent = st.Agent(
            conversation=conversation,
            known=bool(agent.get("known")),
            cwd=str(workdir(self.settings, self.name)),
            default_model=self.settings.model,
            leased=lock.lease is not None,
        )
        self.turns.load(stored.open)
        if lock.lease is not None and self.secret is not None and lock.lease.restarts > 1:
            self._hold_left = self.secret.hold_left
        if guard is not None or lock.open:
            self.agent = replace(self.agent, phase=st.Phase.STOPPING, why="owner-restart")
            self.link.await_predecessor(guard)
        self.lock = old
        entry = {"instance": self.settings.instance, "url": self.settings.url, "predecessor": predecessor}
        self._commit(Plan(lock, self.agent, [("epoch", entry), ("snapshot", views.snapshot(lock))]), must=True)
        self._snapshot_at = self.commits.version
        self.deadlines.restart(keep=self._kept_hold())

    def _kept_hold(self) -> dict[Any, float]:
        lease = self.lock.lease
        if lease is None or self._hold_left is None:
            return {}
        return {("lock", ev.Timer("hold", str(lease.fence))): max(1.0, self._hold_left)}

    def _run(self) -> None:
        while self.closed is None:
            expected = time.monotonic() + self.deadlines.until_next(LONGEST_SLEEP)
            try:
                item = self.inbox.get(timeout=max(0.0, expected - time.monotonic()))
            except Empty:
                item = None
            if time.monotonic() - expected > STALL_SECONDS:
                log.warning("the owner loop stood still", session=self.name)
                self.deadlines.restart()
            try:
                self._handle(item)
                self._fire()
            except (_Answered, NotApplied):
                continue
            except Deposed as error:
                log.error("deposed", session=self.name, by=error.url)
                self.closed = Problem("not-owner", 421, "Another instance owns the session", owner_url=error.url)
            except Exception as error:
                self._refused(error)
        self._shut(self.closed)

    def _handle(self, item: Call | FromAgent | None) -> None:
        if isinstance(item, FromAgent):
            self._cause = time.monotonic()
            self._from_agent(item)
        elif item is None:
            self._tick()
        else:
            self._serve(item)

    def _tick(self) -> None:
        """Nothing came for a while, or the owner record could not be renewed."""
        for ticket, seconds in self._observer.long_waits(self.lock):
            ahead = views.ahead(self.lock, self.lock.tickets[ticket])
            why = ", ".join(str(one["why"]) for one in ahead)
            log.warning("long lock wait", session=self.name, ticket=ticket, seconds=round(seconds), why=why)
        if self._doubted:
            self._doubted = False
            self._look_after_redis()

    def _serve(self, call: Call) -> None:
        self._call, self._cause = call, call.at
        try:
            answer = call.work()
        except (_Answered, NotApplied):
            return
        except Problem as problem:
            self._tell(call, problem)
        except ev.Refused as refused:
            self._tell(call, problem_of(refused))
        except BaseException:
            self._tell(call, Problem("internal", 500, "The owner loop refused the step"))
            raise
        else:
            # The waiter, told inside the step, runs before the releaser.
            gevent.sleep(0)
            call.reply.set(answer)
        finally:
            self._call = None

    def _tell(self, call: Call, problem: Exception) -> None:
        if call.parked is not None:
            call.parked.refuse(problem)
        if not call.reply.ready():
            call.reply.set_exception(problem)

    def _fire(self) -> None:
        for key in self.deadlines.pop_due():
            self._cause = time.monotonic()
            machine, timer = cast("tuple[str, Any]", key)
            self.step(ev.Due(timer) if machine == "lock" else st.Due(timer[0]))

    def _refused(self, error: Exception) -> None:
        """A step that must not be: grants stop, the invariant is named, the stored state is taken again."""
        name = error.name if isinstance(error, ev.InvariantBroken) else type(error).__name__
        log.exception("step refused", session=self.name, invariant=name)
        try:
            self._refuse_all(Problem("stopping", 503, "The session is being recovered; ask again"))
            self._commit(Plan(self.lock, self.agent, [("refused", {"invariant": name, "detail": str(error)[:300]})]))
            self.link.disown()
            self.deadlines = Deadlines()
            self._load("refused-step")
        except Exception:
            log.exception("the session cannot be recovered here", session=self.name)
            self.closed = Problem("stopping", 503, "The session is being recovered")

    def _shut(self, problem: Problem) -> None:
        """The end of the loop: everybody is told, the agent's tree is gone, an open turn is told lost."""
        self._refuse_all(problem)
        if problem.type == "stopping":
            self._last_step(lambda: self.step(st.Stop("shutdown")))
        self.link.end()
        ends = time.monotonic() + SHUT_SECONDS
        while self.link.alive and time.monotonic() < ends:
            try:
                item = self.inbox.get(timeout=0.1)
            except Empty:
                continue
            if isinstance(item, Call):
                self._tell(item, problem)
            elif item is not None:
                self._last_word(item, problem)
        self.link.kill()
        self._drain_inbox(problem)
        self.turns.abandon("stopping")

    def _last_word(self, item: FromAgent, problem: Problem) -> None:
        if problem.type == "stopping":
            self._last_step(lambda: self._from_agent(item))
        else:
            self.link.accepts(item)

    def _last_step(self, work: Callable[[], Any]) -> None:
        """A step at the end, so that the next owner finds no riddle; without Redis there is none."""
        try:
            work()
        except (_Answered, NotApplied):
            return
        except Exception:
            log.exception("at the end", session=self.name)

    def _drain_inbox(self, problem: Problem) -> None:
        kept: list[FromAgent] = []
        while not self.inbox.empty():
            item = self.inbox.get()
            if isinstance(item, Call):
                self._tell(item, problem)
            elif item is not None:
                kept.append(item)
        for one in kept:
            self.inbox.put(one)

    # ---- one step ----------------------------------------------------------------------------

    def step(
        self, *events: ev.Event | st.Event, ledger: Sequence[ev.Entry] = (), commands: Sequence[record.Command] = ()
    ) -> Plan:
        """Decides, commits, acts. Raises events.Refused (nothing happened) and _Answered (Redis was away).

        What comes from the agent or a timer is decided anew after an outage; a request's step is dropped.
        """
        while True:
            plan = compose(self.lock, self.agent, events)
            plan.ledger[:0] = ledger
            try:
                self._commit(plan, commands)
                return plan
            except NotApplied:
                if self._call is not None:
                    raise _Answered from None

    def _commit(self, plan: Plan, commands: Sequence[record.Command] = (), *, must: bool = False) -> None:
        old, was_away = self.lock, False
        granted = self._granted_now(old, plan)
        lease = self._fresh_lease(plan) if granted is not None else self.secret
        done = [*self._commands(old, plan, lease), *commands]
        if done or plan.ledger or must:
            self._snapshot(plan)
            grant = (granted.ticket, granted.skipped) if granted is not None else None
            try:
                was_away = self.commits.push(done, plan.ledger, grant, self._outage)
            except NotApplied:
                self.turns.unstage()
                self._back()
                raise
            except BaseException:
                self.turns.unstage()
                raise
        self.secret = lease if plan.lock.lease is not None else None
        self._adopt(plan, must)
        if plan.lock.turn is not None and old.turn is None:
            hold(self.settings, "turn-accepted")
        self._act(plan)
        self._observer.step(self.lock, plan)
        if was_away:
            self._back()

    def _snapshot(self, plan: Plan) -> None:
        if self.commits.version - self._snapshot_at >= SNAPSHOT_EVERY:
            plan.ledger.append(("snapshot", views.snapshot(plan.lock)))
            self._snapshot_at = self.commits.version

    def _adopt(self, plan: Plan, must: bool) -> None:
        if plan.agent.phase is not self.agent.phase:
            self._idle_since = time.monotonic()
        changed = must or plan.lock is not self.lock or plan.agent is not self.agent
        self.lock, self.agent = plan.lock, plan.agent
        self._stored_agent = self._agent_record(plan.agent)
        if changed:
            self.deadlines.want(self._timers())

    # ---- while Redis is away -----------------------------------------------------------------

    def _look_after_redis(self) -> None:
        if not self.commits.reachable():
            self._outage()
            self._back()

    def _outage(self) -> None:
        """Everybody who waits is told at once; places and leases stand, the agent goes on. Returns when it is over."""
        began = self.away_since = time.monotonic()
        log.warning("Redis is away", session=self.name)
        if self._call is not None:
            self._tell(self._call, away())
        self._refuse_all(away())
        self.commits.wait(self._meanwhile)
        log.warning("Redis is back", session=self.name, seconds=round(time.monotonic() - began, 1))
        self.away_since = None
        self.commits.sure()

    def _meanwhile(self) -> None:
        """An owner that could not renew for `owner_doubt` ends its agent: another may own the session by now."""
        self._drain_inbox(away())
        if self.closed is not None:
            self.away_since = None
            raise _Answered
        if time.monotonic() - self.commits.sure_at > self.settings.times.owner_doubt and self.link.alive:
            log.error("owner in doubt: the agent is ended", session=self.name)
            self.link.end()

    def _back(self) -> None:
        """After an outage nobody is present, and every deadline has its full time again (`max_hold` what was left)."""
        present = [t for t in self.lock.tickets.values() if t.present and t.id not in self.parked]
        tickets = {t.id: replace(t, presence=Presence.ABSENT, passed=False) for t in present}
        lock = replace(self.lock, tickets={**self.lock.tickets, **tickets})
        timer = self._hold_timer()
        left = self.deadlines.left(timer) if timer else None
        # If Redis goes away again meanwhile, that outage has its own end.
        with contextlib.suppress(NotApplied):
            self._commit(Plan(lock, self.agent, [("absent", {"ticket": t}) for t in tickets]), must=bool(tickets))
        self.deadlines.restart(keep={timer: left} if timer and left is not None else None)

    def _everything(self) -> tuple[list[record.Command], list[ev.Entry]]:
        """The whole state, for a Redis that lost some of it."""
        commands = record.full(self.lock, self._extras(self.secret), self._agent_record(self.agent))
        return commands + self.store.recent_commands(), [("snapshot", views.snapshot(self.lock))]

    # ---- what a step writes ------------------------------------------------------------------

    @staticmethod
    def _granted_now(old: Lock, plan: Plan) -> ev.Granted | None:
        """The grant of this step; an answer that is only repeated is none."""
        lease = plan.lock.lease
        if lease is None or (old.lease is not None and old.lease.fence == lease.fence):
            return None
        return plan.grant

    def _fresh_lease(self, plan: Plan) -> record.LeaseExtras:
        worker = plan.lock.lease is not None and plan.lock.lease.kind is Kind.WORKER
        left = None if worker else self.settings.times.max_hold
        return record.LeaseExtras(secrets.token_urlsafe(24), left, now_text())

    def _extras(self, lease: record.LeaseExtras | None) -> record.Extras:
        return record.Extras(lease=lease, turn=self.turns.current or {}, taken=self.taken)

    def _commands(self, old: Lock, plan: Plan, lease: record.LeaseExtras | None) -> list[record.Command]:
        commands: list[record.Command] = []
        for effect in plan.effects:
            match effect:
                case ev.LeaseOver(fence=fence, ticket=ticket, holder=holder, reason=reason) if self.secret:
                    past = {"fence": fence, "ticket": ticket, "holder": holder, "reason": reason.value}
                    commands.append(record.keep(record.past_suffix(self.secret.secret), past))
                case ev.TicketOver(ticket=ticket, reason=reason):
                    commands.append(record.keep(f"ended:{ticket}", {"reason": reason.value}))
        commands += self._turn_commands(plan)
        if lease is self.secret and lease is not None:
            lease = self._with_hold_left(lease)
        commands += record.diff(old, plan.lock, self._extras(lease))
        wanted = self._agent_record(plan.agent)
        if wanted != self._stored_agent:
            commands.append(record.put("agent", wanted))
        return commands

    def _with_hold_left(self, lease: record.LeaseExtras) -> record.LeaseExtras:
        timer = self._hold_timer()
        left = self.deadlines.left(timer) if timer else None
        return lease if left is None else replace(lease, hold_left=round(left, 1))

    def _hold_timer(self) -> Any:
        lease = self.lock.lease
        return ("lock", ev.Timer("hold", str(lease.fence))) if lease else None

    def _turn_commands(self, plan: Plan) -> list[record.Command]:
        commands: list[record.Command] = []
        told = False
        for output in plan.outputs:
            match output:
                case st.TurnStarted():
                    commands += self.turns.started(plan.ledger)
                case st.TurnOver():
                    commands += self.turns.over(output, plan.ledger, self._conversation(plan.agent))
                    told = True
                case st.Gone() if not told and self.turns.open is not None and plan.lock.turn is None:
                    lost = st.TurnOver(self.turns.open["id"], st.Outcome.LOST, reason=self.agent.why or "reaped")
                    commands += self.turns.over(lost, plan.ledger, self._conversation(plan.agent))
        return commands

    def _agent_record(self, agent: st.Agent) -> dict[str, Any]:
        return {
            "conversation": agent.conversation,
            "generation": self.generation,
            "known": agent.known,
            "guard": self.link.guard,
        }

    def _conversation(self, agent: st.Agent | None = None) -> dict[str, Any]:
        now = agent or self.agent
        return {"id": now.conversation, "generation": self.generation, "fresh": not now.known}

    def _timers(self) -> dict[Any, float]:
        times = self.settings.times
        found: dict[Any, float] = {("lock", t): s for t, s in lock_machine.timers(self.lock, times).items()}
        found.update({("agent", t): s for t, s in agent_machine.timers(self.agent, times).items()})
        return found

    # ---- acting ------------------------------------------------------------------------------

    def _act(self, plan: Plan) -> None:
        for output in plan.outputs:
            match output:
                case st.Write(what=what, data=data):
                    self._write(what, data)
                case st.Launch(resume=resume):
                    self.link.start(plan.agent.conversation, resume)
                case st.Kill():
                    self.link.end()
                case st.Acked():
                    turn = plan.agent.turn
                    self.turns.acked(turn is not None and turn.result is not None)
        for effect in plan.effects:
            match effect:
                case ev.Granted(ticket=ticket):
                    self._tell_parked(ticket, self._granted(ticket))
                case ev.TicketOver(ticket=ticket, reason=reason):
                    self.taken.pop(ticket, None)
                    self._refuse_parked(ticket, ended(reason.value))
                case ev.Displaced(ticket=ticket):
                    self._refuse_parked(ticket, superseded())
        self.turns.publish()

    def _write(self, what: str, data: bytes) -> None:
        if what == "interrupt":
            self.turns.interrupted(self._cause)
        self.link.write(data)

    def _tell_parked(self, ticket: str, body: dict[str, Any]) -> None:
        parked = self.parked.pop(ticket, None)
        if parked is not None:
            parked.tell(body)

    def _refuse_all(self, problem: Problem) -> None:
        for parked in self.parked.values():
            parked.refuse(problem)
        self.parked.clear()

    def _refuse_parked(self, ticket: str, problem: Problem) -> None:
        parked = self.parked.pop(ticket, None)
        if parked is not None:
            parked.refuse(problem)

    def _granted(self, ticket: str) -> dict[str, Any]:
        lease = self.lock.lease
        if lease is None or self.secret is None or lease.ticket != ticket:
            raise ev.InvariantBroken("one_holder_per_lease", f"{ticket} was granted and has no lease")
        body = {
            "fence": lease.fence,
            "secret": self.secret.secret,
            "expires_at": self.expires_at(),
            "conversation": self._conversation(),
        }
        return {"state": "granted", "lease": body}

    def expires_at(self) -> str | None:
        """When the lease ends if nobody renews it, RFC 3339; for show."""
        lease = self.lock.lease
        if lease is None:
            return None
        name = "lease" if lease.claimed else "claim"
        return now_text(self.deadlines.left(("lock", ev.Timer(name, str(lease.fence)))) or 0.0)

    # ---- what comes from the agent -----------------------------------------------------------

    def _from_agent(self, item: FromAgent) -> None:
        if not self.link.accepts(item):
            return
        if item.lines is not None:
            self._lines(item.lines)
        elif isinstance(item.event, st.Spawned):
            self.step(item.event, ledger=[("agent-started", {"guard": self.link.guard})])
        elif isinstance(item.event, st.Exited):
            self._exited(item.event)

    def _exited(self, event: st.Exited) -> None:
        ledger: list[ev.Entry] = []
        if "No conversation found" in event.stderr:
            self._fresh_conversation("history-lost", ledger)
        self.step(event, ledger=ledger)

    def _fresh_conversation(self, why: str, ledger: list[ev.Entry]) -> None:
        self.generation += 1
        self.agent = replace(self.agent, conversation=str(uuid.uuid4()), known=False)
        data = {"id": self.agent.conversation, "generation": self.generation, "why": why}
        ledger.append(("conversation", data))

    def _lines(self, batch: list[bytes]) -> None:
        for number, text in enumerate(batch):
            if not text.strip():
                continue
            try:
                line = protocol.parse(text)
            except protocol.ProtocolError as error:
                self.step(st.Garbage(str(error)))
                continue
            self._line(line)
            if number % 64 == 63:
                gevent.sleep(0)
        self.link.flow()

    def _line(self, line: protocol.Line) -> None:
        agent, outputs = agent_machine.decide(self.agent, st.Got(line.message))
        if any(isinstance(o, st.Forward) for o in outputs):
            self.turns.feed(line.raw)
        if agent is self.agent and all(isinstance(o, st.Forward) for o in outputs):
            return
        if any(isinstance(o, st.Renamed) for o in outputs):
            self.generation += 1
        self.step(st.Got(line.message))

    # ---- what requests do, inside the loop ----------------------------------------------------

    def _wait(self, parked: Parked) -> None:
        self._living(parked.ticket)
        before = self.parked.get(parked.ticket)
        self.step_for_wait(parked, before)

    def step_for_wait(self, parked: Parked, before: Parked | None) -> None:
        """A newer wait of the same holder replaces an older one, whose caller is answered `waiting`."""
        plan = compose(self.lock, self.agent, [ev.Wait(parked.ticket, parked.holder)])
        if before is not None:
            if before.holder == parked.holder:
                before.tell(views.waiting(self.lock, self.lock.tickets[parked.ticket]))
            else:
                before.refuse(superseded())
        self.parked[parked.ticket] = parked
        plan.effects = [e for e in plan.effects if not isinstance(e, ev.Displaced)]
        self._commit(plan)

    def _left(self, parked: Parked, gone: bool) -> None:
        if self.parked.get(parked.ticket) is not parked:
            if parked.open:
                parked.refuse(away())
            return
        del self.parked[parked.ticket]
        event = ev.HangUp if gone else ev.WaitOver
        self.step(event(parked.ticket, parked.holder))
        ticket = self.lock.tickets.get(parked.ticket)
        if ticket is not None:
            parked.tell(views.waiting(self.lock, ticket))
        else:
            parked.refuse(ended("withdrawn"))

    def _living(self, ticket: str) -> None:
        """Raises the problem of a ticket that has ended or never was."""
        if ticket in self.lock.tickets:
            return
        found = self.turns.read(f"ended:{ticket}")
        if found is None:
            raise Problem("not-found", 404, "There is no such ticket")
        raise ended(str(found["reason"]))
