"""The owner loop: one greenlet and one inbox per session. Only the loop decides, commits and acts, in that order.

Other greenlets put commands into the inbox and wait for the replies. This module has the loop, its start and its end.
Its parts are `handlers` (what each command does), `pipeline` (the stages of a step), `outage` and `shutdown`.
"""

import time
from dataclasses import replace
from typing import Final, TypeVar

import gevent
import structlog

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock import machine as lock_machine
from sessiond.lock.rules import first_fence
from sessiond.lock.state import Lock
from sessiond.problems import Problem, not_owner
from sessiond.session import views
from sessiond.session.agent.launch import workdir
from sessiond.session.agent.slots import Slots
from sessiond.session.audit import Audit
from sessiond.session.callers.waiters import Waiter
from sessiond.session.commands import Command, LeaveTicket, WaitTicket
from sessiond.session.context import SessionContext
from sessiond.session.handlers.dispatch import HANDLERS, Dispatcher, Handlers
from sessiond.session.handlers.due_timers import fire_due_timers
from sessiond.session.inbox import AlreadyAnswered
from sessiond.session.pipeline.commits import NotApplied
from sessiond.session.pipeline.plan import Plan
from sessiond.session.pipeline.runner import Pipeline, do_not_wait
from sessiond.session.pipeline.step import Step
from sessiond.session.reader import SessionReader
from sessiond.session.shutdown import Shutdown
from sessiond.session.timers import LONGEST_SLEEP
from sessiond.settings import Settings
from sessiond.store.codec import Stored
from sessiond.store.connection import RedisUnavailable
from sessiond.store.ownership import Ownership
from sessiond.store.store import Deposed, Store

log = structlog.get_logger("sessiond.session")

R = TypeVar("R")

STOP_SECONDS: Final = 8.0
"""How long `stop` waits for the loop."""


class Session:
    """One session, run by its owner. `reader` shows its state; `ask` and `wait` change it."""

    def __init__(
        self, settings: Settings, store: Store, owned: Ownership, slots: Slots, handlers: Handlers = HANDLERS
    ) -> None:
        """`owned` is the ownership of the session that `store` names. `handlers` may add commands of a test."""
        self.name, self.settings, self.store = store.name, settings, store
        self._predecessor = owned.predecessor
        self._context = SessionContext(settings, store, slots)
        self.pipeline = Pipeline(self._context, owned)
        self.reader = SessionReader(self.pipeline)
        self._dispatcher = Dispatcher(self.pipeline, handlers)
        self._long_waits_checked_at = time.monotonic()
        self.audit: Audit
        """Set by `start`. It begins at the end of the ledger at that time."""
        self._greenlet: gevent.Greenlet[..., None] | None = None

    # ---- for other greenlets -----------------------------------------------------------------

    def ask(self, command: Command[R]) -> R:
        """Let the owner loop handle a command, and return its reply.

        Raises:
            Problem: the command was refused.
        """
        return self._context.inbox.ask(command)

    def wait(self, ticket: str, holder: str) -> Waiter:
        """Make `holder` present on the ticket. The returned waiter gets the answer.

        Raises:
            Problem: the session takes no commands now.
        """
        self._context.inbox.check_open()
        waiter = Waiter(ticket, holder, self._end_wait)
        self._context.inbox.post(WaitTicket(waiter))
        return waiter

    def _end_wait(self, waiter: Waiter, hung_up: bool) -> None:
        self._context.inbox.post(LeaveTicket(waiter, hung_up))

    def doubt(self) -> None:
        """Make the loop check Redis: the owner record could not be renewed, or Redis lost writes."""
        self._context.inbox.doubt()

    def confirm(self, asked: float) -> None:
        """Record that a call sent at `asked` (monotonic seconds) confirmed our ownership."""
        self.pipeline.commits.confirm(asked)

    @property
    def unconfirmed(self) -> float:
        """Seconds since the moment at which our ownership was last confirmed."""
        return self.pipeline.commits.unconfirmed

    @property
    def closed(self) -> Problem | None:
        """Why the session takes no commands any more."""
        return self._context.inbox.closed

    @property
    def running(self) -> bool:
        """Whether the owner loop runs."""
        return self._greenlet is not None and not self._greenlet.dead

    # ---- start and end -----------------------------------------------------------------------

    def start(self) -> None:
        """Load the stored state and run the loop.

        Raises:
            StoreError: the state cannot be loaded, and nothing runs.
        """
        self.audit = Audit(self.name, self.store, lambda: self.pipeline.commits.version)
        try:
            self._load(self._predecessor, at_start=True)
        except NotApplied as error:
            raise RedisUnavailable("Redis was away as the session was taken over") from error
        self._greenlet = gevent.spawn(self._run)

    def stop(self, problem: Problem) -> None:
        """Refuse all callers with `problem`, and end the agent and the loop. Returns when both have ended."""
        self._context.inbox.close(problem)
        if self._greenlet is not None:
            self._greenlet.join(timeout=STOP_SECONDS)

    def _load(self, predecessor: str, *, at_start: bool = False) -> None:
        """Load the stored state, and commit it as the start of a new epoch. Raises NotApplied.

        Except at the start, this waits until Redis is back.
        """
        state, link = self._context.state, self._context.link
        stored = self.store.read_state()
        guards = link.predecessors((stored.agent or {}).get("guard"))
        lock = self._adopt(stored)
        if guards or lock.open:
            state.agent = replace(state.agent, phase=st.Phase.STOPPING, why=st.OWNER_RESTART)
        link.found(guards)
        entry = {"instance": self.settings.instance, "url": self.settings.url, "predecessor": predecessor}
        plan = Plan(lock, state.agent, [("epoch", entry), ("snapshot", views.snapshot(lock))])
        self.pipeline.run(Step(plan, begins_epoch=True), do_not_wait if at_start else None)
        if state.agent.phase is st.Phase.STOPPING:  # only after the commit is it certain that we may end them
            link.await_predecessors(guards)
        # `max_hold` starts again at most once per lease.
        again = lock.lease is not None and lock.lease.restarts > 1 and state.lease_extras is not None
        left = state.lease_extras.hold_left if again and state.lease_extras is not None else None
        self._context.lease_time.restart(None if left is None else max(1.0, left))

    def _adopt(self, stored: Stored) -> Lock:
        """Make the stored state the current one. Returns the lock with which the new epoch begins."""
        state, agent = self._context.state, stored.agent or {}
        state.lock, state.lease_extras, state.taken = stored.lock, stored.extras.lease, dict(stored.extras.taken)
        lock = lock_machine.restarted(stored.lock)
        lock = replace(lock, fence=max(lock.fence, first_fence(self.pipeline.commits.epoch)))
        state.agent = st.Agent(
            conversation=str(agent.get("conversation") or state.agent.conversation),
            generation=int(agent.get("generation", 1)),
            known=bool(agent.get("known")),
            cwd=str(workdir(self.settings, self.name)),
            default_model=self.settings.model,
            leased=lock.lease is not None,
        )
        self._context.turns.load(stored.open)
        return lock

    # ---- the loop ----------------------------------------------------------------------------

    def _run(self) -> None:
        inbox = self._context.inbox
        while inbox.closed is None:
            item = inbox.take(self._context.timers.until_next(LONGEST_SLEEP))
            try:
                if item is not None:
                    self._dispatcher.serve(item)
                fire_due_timers(self.pipeline)
                self._check_long_waits()
                self._check_redis()
            except (AlreadyAnswered, NotApplied):
                continue
            except Deposed as error:
                log.error("deposed", session=self.name, by=error.url)
                inbox.closed = not_owner(error.url)
            except Exception as error:
                self._recover(error)
        Shutdown(self._dispatcher).run(inbox.closed)
        self.store.close()

    def _check_long_waits(self) -> None:
        """Log tickets that wait for long, at most once in `LONGEST_SLEEP`."""
        if time.monotonic() - self._long_waits_checked_at < LONGEST_SLEEP:
            return
        self._long_waits_checked_at = time.monotonic()
        lock = self._context.state.lock
        late = self.pipeline.metrics.long_waits(lock, self.settings.times.long_wait)
        if not late:
            return
        queued = views.Queued(lock)
        for ticket, seconds in late:
            why = ", ".join(str(one["why"]) for one in queued.ahead(lock.tickets[ticket]))
            log.warning("long lock wait", session=self.name, ticket=ticket, seconds=round(seconds), why=why)

    def _check_redis(self) -> None:
        """If Redis is in doubt, check it, and wait until it is back."""
        if self._context.inbox.doubted:
            self._context.inbox.doubted = False
            if not self.pipeline.commits.reachable():
                self.pipeline.wait_for_redis()
                self.pipeline.return_from_outage()

    def _recover(self, error: Exception) -> None:
        """Recover from a step that is not allowed: log the invariant, end the agent, and load the stored state."""
        name = error.name if isinstance(error, ev.InvariantBroken) else type(error).__name__
        log.exception("step refused", session=self.name, invariant=name)
        state = self._context.state
        try:
            self._context.waiters.refuse_all(Problem("stopping", 503, "The session is being recovered; ask again"))
            entry: ev.Entry = ("refused", {"invariant": name, "detail": str(error)[:300]})
            self.pipeline.run(Step(Plan(state.lock, state.agent, [entry]), self.pipeline.cause))
            self._context.link.disown()
            self._context.timers.update({})
            self._load("refused-step")
        except Exception:
            log.exception("the session cannot be recovered here", session=self.name)
            self._context.inbox.closed = Problem("stopping", 503, "The session is being recovered")
