"""The owner loop: one greenlet, one inbox a session. It alone decides, commits, then acts, in that order.

Request greenlets only put calls into the inbox and wait. A step is: the machines decide (pure), one
script commits, then lines are written and callers told. What the commit refuses was never done.
Here are the loop and its life; its parts are steps.py (a step), waits.py (parked callers),
agentlines.py (what the agent says), outages.py (Redis away), shutdown.py (the end).
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import gevent
import structlog

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock import machine as lock_machine
from sessiond.lock.rules import first_fence
from sessiond.problems import Problem, not_owner
from sessiond.session import views
from sessiond.session.agent.events import AgentLines
from sessiond.session.agent.launch import workdir
from sessiond.session.agent.link import AgentLink, FromAgent
from sessiond.session.agent.slots import Slots
from sessiond.session.audit import Audit
from sessiond.session.callers.ticket_waits import Waits
from sessiond.session.callers.turns import TurnBook
from sessiond.session.callers.waiters import Desk
from sessiond.session.inbox import Answered, Inbox, Item
from sessiond.session.outage import Outages
from sessiond.session.pipeline.commits import Commits, NotApplied
from sessiond.session.pipeline.effects import Acts
from sessiond.session.pipeline.persistence import Writes, claim_of
from sessiond.session.pipeline.plan import Plan
from sessiond.session.pipeline.step_log import Telling
from sessiond.session.pipeline.step_reports import Observer
from sessiond.session.pipeline.steps import Steps
from sessiond.session.shutdown import Shutdown
from sessiond.session.state import LeaseTime, Standing
from sessiond.session.timers import Deadlines
from sessiond.settings import Settings
from sessiond.store.store import Away, Deposed, Store

log = structlog.get_logger("sessiond.session")

LONGEST_SLEEP = 1.0
STALL_SECONDS = LONGEST_SLEEP + 2.0
"""The loop did not look at its deadlines for so long: the process stood still, wherever in the loop that was."""
STOP_SECONDS = 8.0


class Session:
    """One session as its owner runs it.

    For request greenlets: `ask`, `doubt`, `sleep_now`, `stop` and the reading of `standing`. What they `ask` runs
    inside the loop and may use `steps`, `waits`, `turns` and `lease_time`.
    """

    def __init__(self, name: str, settings: Settings, store: Store, epoch: int, version: int, slots: Slots) -> None:
        self.name, self.settings, self.store = name, settings, store
        self.standing = Standing()
        self.turns = TurnBook(store, self.doubt)
        self.deadlines = Deadlines()
        self.lease_time = LeaseTime(self.standing, self.deadlines)
        self._inbox = Inbox()
        self._desk = Desk()
        self.observer = Observer()
        self.link = AgentLink(name, settings, slots, self, self._inbox.put)
        writes = Writes(
            self.standing, self.turns, store, self.lease_time, settings.times.max_hold, lambda: self.link.guard,
            claim_of(settings),
        )  # fmt: skip
        self.commits = Commits(store, epoch, version, writes.everything)
        self._outages = Outages(name, self._inbox, self._desk, self.commits, self.link, settings.times.owner_doubt)
        self._acts = Acts(
            self.standing, self.link, self.turns, self._desk, self.lease_time, self.observer, Telling(name)
        )  # fmt: skip
        self.steps = Steps(
            settings, self.standing, self._inbox, self.turns, self.deadlines, self.lease_time, writes, self.commits,
            self._outages, self._acts,
        )  # fmt: skip
        self.waits = Waits(self.standing, self._inbox, self._desk, self.steps, self.turns)
        self._lines = AgentLines(
            settings, self.standing, self._inbox, self.link, self.steps, self.turns, self._fire
        )  # fmt: skip
        self._doubted = False
        self._looked = time.monotonic()
        self.audit: Audit
        """Set by `start`: it begins where the stored ledger ended then."""
        self._greenlet: gevent.Greenlet[..., None] | None = None

    # ---- from other greenlets ----------------------------------------------------------------

    def ask(self, work: Callable[[], Any], *, patient: bool = False) -> Any:
        """Runs `work` in the owner loop and returns its answer. Raises Problem. `patient`: as `Call` has it."""
        return self._inbox.ask(work, patient=patient)

    def doubt(self) -> None:
        """The owner record could not be renewed, or Redis lost writes: the loop shall look after Redis."""
        if not self._inbox.away:
            self._doubted = True
            self._inbox.wake()

    @property
    def closed(self) -> Problem | None:
        """Why the session takes nothing any more."""
        return self._inbox.closed

    @property
    def running(self) -> bool:
        """Whether the owner loop runs."""
        return self._greenlet is not None and not self._greenlet.dead

    def may_sleep(self) -> float | None:
        """Seconds for which the agent has been idle; None while it is needed."""
        return self.standing.idle_seconds()

    def sleep_now(self) -> None:
        """Another session needs the slot: the agent is put to sleep if it still is idle."""
        self._inbox.post(lambda: self.may_sleep() is not None and self.steps.step(st.Stop("sleep")))

    # ---- life --------------------------------------------------------------------------------

    def start(self, predecessor: str) -> None:
        """Loads what is stored and runs the loop. Raises store errors; then nothing runs."""
        self.audit = Audit(self.name, self.store, lambda: self.commits.version)
        try:
            self._load(predecessor, wait=False)
        except NotApplied as error:
            raise Away("Redis was away as the session was taken over") from error
        self._greenlet = gevent.spawn(self._run)

    def stop(self, problem: Problem) -> None:
        """Answers everybody with `problem`, ends the agent, ends the loop; returns when all are gone."""
        if self._inbox.closed is None:
            self._inbox.closed = problem
            self._inbox.wake()
        if self._greenlet is not None:
            self._greenlet.join(timeout=STOP_SECONDS)

    def _load(self, predecessor: str, *, wait: bool = True) -> None:
        """Takes the stored state, as a new epoch finds it, and commits that.

        Raises NotApplied; `wait` waits for Redis to be back before.
        """
        stored = self.store.read_state()
        now, agent = self.standing, stored.agent or {}
        guards = self.link.predecessors(agent.get("guard"))
        now.lock, now.extras, now.taken = stored.lock, stored.extras.lease, dict(stored.extras.taken)
        lock = lock_machine.restarted(stored.lock)
        lock = replace(lock, fence=max(lock.fence, first_fence(self.commits.epoch)))
        now.agent = st.Agent(
            conversation=str(agent.get("conversation") or now.agent.conversation),
            generation=int(agent.get("generation", 1)),
            known=bool(agent.get("known")),
            cwd=str(workdir(self.settings, self.name)),
            default_model=self.settings.model,
            leased=lock.lease is not None,
        )
        self.turns.load(stored.open)
        if guards or lock.open:
            now.agent = replace(now.agent, phase=st.Phase.STOPPING, why=st.OWNER_RESTART)
        self.link.found(guards)
        entry = {"instance": self.settings.instance, "url": self.settings.url, "predecessor": predecessor}
        self.steps.commit(
            Plan(lock, now.agent, [("epoch", entry), ("snapshot", views.snapshot(lock))]), begins=True, wait=wait
        )
        if now.agent.phase is st.Phase.STOPPING:  # only now it is sure that they are ours to end
            self.link.await_predecessors(guards)
        # `max_hold` starts again at most once a lease.
        again = lock.lease is not None and lock.lease.restarts > 1 and now.extras is not None
        left = now.extras.hold_left if again and now.extras is not None else None
        self.lease_time.restart(None if left is None else max(1.0, left))

    # ---- the loop ----------------------------------------------------------------------------

    def _run(self) -> None:
        while self._inbox.closed is None:
            item = self._inbox.take(self.deadlines.until_next(LONGEST_SLEEP))
            try:
                self._handle(item)
                self._fire()
                self._look_around()
            except (Answered, NotApplied):
                continue
            except Deposed as error:
                log.error("deposed", session=self.name, by=error.url)
                self._inbox.closed = not_owner(error.url)
            except Exception as error:
                self._refused(error)
        Shutdown(
            self.name, self._inbox, self._desk, self.link, self.steps, self._lines, self.turns
        ).run(self._inbox.closed)  # fmt: skip
        self.store.close()

    def _handle(self, item: Item) -> None:
        if isinstance(item, FromAgent):
            self._acts.cause = time.monotonic()
            self._lines.take(item)
        elif item is not None:
            self._acts.cause = item.at
            self._inbox.serve(item)

    def _look_around(self) -> None:
        """At most once in `LONGEST_SLEEP`: who waits for long; at once: whether Redis still is there, when in doubt."""
        if time.monotonic() - self._looked >= LONGEST_SLEEP:
            self._looked = time.monotonic()
            self._long_waits()
        if self._doubted:
            self._doubted = False
            if not self.commits.reachable():
                self._outages.wait()
                self.steps.back()

    def _long_waits(self) -> None:
        lock = self.standing.lock
        late = self.observer.long_waits(lock, self.settings.times.long_wait)
        if not late:
            return
        queued = views.Queued(lock)
        for ticket, seconds in late:
            why = ", ".join(str(one["why"]) for one in queued.ahead(lock.tickets[ticket]))
            log.warning("long lock wait", session=self.name, ticket=ticket, seconds=round(seconds), why=why)

    def _fire(self) -> None:
        if self.deadlines.unseen() > STALL_SECONDS:
            log.warning("the owner loop stood still", session=self.name, seconds=round(self.deadlines.unseen(), 1))
            self.lease_time.restart(self.lease_time.hold_left())
        for key in self.deadlines.pop_due(lambda key: self._inbox.oldest() if key[0] == "lock" else None):
            if self.deadlines.left(key) is None:
                continue  # the step of one before it needs it no more
            self._acts.cause = time.monotonic()
            machine, timer = cast("tuple[str, Any]", key)
            self.steps.step(ev.Due(timer) if machine == "lock" else st.Due(*timer))

    def _refused(self, error: Exception) -> None:
        """A step that must not be: grants stop, the invariant is named, the stored state is taken again."""
        name = error.name if isinstance(error, ev.InvariantBroken) else type(error).__name__
        log.exception("step refused", session=self.name, invariant=name)
        try:
            self._desk.refuse_all(Problem("stopping", 503, "The session is being recovered; ask again"))
            entry: ev.Entry = ("refused", {"invariant": name, "detail": str(error)[:300]})
            self.steps.commit(Plan(self.standing.lock, self.standing.agent, [entry]))
            self.link.disown()
            self.deadlines.want({})
            self._load("refused-step")
        except Exception:
            log.exception("the session cannot be recovered here", session=self.name)
            self._inbox.closed = Problem("stopping", 503, "The session is being recovered")
