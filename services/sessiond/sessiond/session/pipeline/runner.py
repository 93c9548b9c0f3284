"""Runs the stages of a step: decide, persist, commit, publish, act, report. Only the owner loop uses it.

A caller is answered and a line is written only after the commit. If the commit fails, nothing has happened.
"""

import contextlib
import time
from collections.abc import Callable, Sequence

from sessiond.agent import machine as agent_machine
from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock import queries
from sessiond.session import views
from sessiond.session.context import SessionContext
from sessiond.session.fault_points import hold_step
from sessiond.session.inbox import AlreadyAnswered
from sessiond.session.outage import Outage
from sessiond.session.pipeline.commits import Commits, NotApplied
from sessiond.session.pipeline.effects import Effects
from sessiond.session.pipeline.persistence import Persistence
from sessiond.session.pipeline.plan import Plan, compose, forget_presence
from sessiond.session.pipeline.step import Step
from sessiond.session.pipeline.step_reports import StepLog, StepMetrics
from sessiond.session.timers import SessionTimer
from sessiond.store import codec
from sessiond.store.ownership import Ownership

SNAPSHOT_EVERY = 500
"""Steps between two snapshots of the lock in the ledger."""


class Pipeline:
    """Makes the steps of one session, one at a time."""

    def __init__(self, context: SessionContext, owned: Ownership) -> None:
        self.context = context
        self.cause = time.monotonic()
        """When the item that is handled now arrived."""
        self.metrics = StepMetrics()
        self._log = StepLog(context.name)
        self._persistence = Persistence(context)
        self.commits = Commits(context.store, owned.epoch, owned.version, self._persistence.everything)
        self._effects = Effects(context)
        self._outage = Outage(context)
        self._snapshot_at = 0

    # ---- whole steps -------------------------------------------------------------------------

    def step(
        self, *events: ev.Event | st.Event, ledger: Sequence[ev.Entry] = (), commands: Sequence[codec.RedisCommand] = ()
    ) -> Plan:
        """Decide the events and carry the decision out. `ledger` comes before the machines' entries.

        Raises:
            Refused, QueueFull: the machines refuse the events; nothing happened.
            AlreadyAnswered: as `carry_out`.
            InvariantBroken, ValueError: the state after the events is not allowed.
        """
        return self.carry_out(self.decide(*events), *events, ledger=ledger, commands=commands)

    def decide(self, *events: ev.Event | st.Event) -> Plan:
        """Return the effect of these events on the current state. Raises what `plan.compose` raises."""
        return compose(self.context.state.lock, self.context.state.agent, events)

    def carry_out(
        self, plan: Plan, *events: ev.Event | st.Event, ledger: Sequence[ev.Entry] = (),
        commands: Sequence[codec.RedisCommand] = (),
    ) -> Plan:  # fmt: skip
        """Commit the decided plan of `events` and act on it. Returns the plan that was committed.

        If Redis was away and the step was not applied, the agent's events are decided again. A request's step is
        dropped, and so is a timer's, which has its full time again.

        Raises:
            AlreadyAnswered: Redis was away, and the step is dropped.
        """
        while True:
            plan.ledger[:0] = ledger
            try:
                self.run(Step(plan, self.cause, list(commands)))
                return plan
            except NotApplied:
                if self.context.inbox.serving is not None or any(isinstance(e, (ev.Due, st.Due)) for e in events):
                    raise AlreadyAnswered from None
            plan = self.decide(*events)

    # ---- the stages --------------------------------------------------------------------------

    def run(self, step: Step, on_outage: Callable[[], None] | None = None) -> None:
        """Run a decided step through all stages. A step that writes nothing is not committed.

        `on_outage` is called while Redis is away; by default the step waits until Redis is back.

        Raises:
            Exception: what `Commits.push` raises. Then nothing has happened.
        """
        self._persistence.prepare(step)
        self._hold("decided", step)
        was_away = self._commit(step, on_outage or self.wait_for_redis)
        self._publish(step)
        self._hold("committed", step)
        was_away |= self._confirm_ownership()
        self._effects.act(step)
        self.metrics.count(step)
        self._log.write(step.plan)
        self._hold("acted", step)
        if was_away:
            self.return_from_outage()

    def _hold(self, point: str, step: Step) -> None:
        hold_step(self.context.settings.hooks_dir, self.context.name, point, step.plan.ledger)

    def _commit(self, step: Step, on_outage: Callable[[], None]) -> bool:
        """Commit the step if it writes anything. Returns whether Redis was away during it."""
        ledger = step.plan.ledger
        if not step.commands and not ledger:
            return False
        if not ledger:
            # Only what is kept beside the machines changed (for example the agent's record). Every step has an entry.
            ledger.append(("kept", {"what": sorted({name for _, name, *_ in step.commands})}))
        self._add_snapshot(step.plan)
        try:
            return self.commits.push(step, on_outage)
        except NotApplied:
            self.context.turns.unstage()
            if not step.begins_epoch:  # an epoch that has not begun has no state to restore
                self.return_from_outage()
            raise
        except BaseException:
            self.context.turns.unstage(unknown=True)
            raise

    def _add_snapshot(self, plan: Plan) -> None:
        if self.commits.version - self._snapshot_at >= SNAPSHOT_EVERY:
            plan.ledger.append(("snapshot", views.snapshot(plan.lock)))
        if any(event == "snapshot" for event, _ in plan.ledger):
            self._snapshot_at = self.commits.version

    def _publish(self, step: Step) -> None:
        """Make the committed step the current state, and set the timers that this state needs."""
        state, plan = self.context.state, step.plan
        state.lease_extras = step.lease_extras
        if plan.agent.phase is not state.agent.phase:
            state.idle_since = time.monotonic()
        changed = step.begins_epoch or plan.lock is not state.lock or plan.agent is not state.agent
        state.lock, state.agent = plan.lock, plan.agent
        self._persistence.committed(plan)
        if changed:
            self.context.timers.update(self._timers())

    def _timers(self) -> dict[SessionTimer, float]:
        times, state = self.context.settings.times, self.context.state
        found: dict[SessionTimer, float] = {("lock", t): s for t, s in queries.timers(state.lock, times).items()}
        found.update({("agent", t): s for t, s in agent_machine.timers(state.agent, times).items()})
        return found

    def _confirm_ownership(self) -> bool:
        """Check that this instance still owns the session, if that was not confirmed for `owner_doubt` seconds.

        Only an owner may act. After a stall another instance may own the session, even if this step wrote nothing.
        Returns whether Redis was away during the check. Raises Deposed.
        """
        was_away = False
        while self.commits.unconfirmed > self.context.settings.times.owner_doubt:
            entry = ("still-owner", {"seconds": round(self.commits.unconfirmed, 1)})
            state = self.context.state
            try:
                was_away |= self.commits.push(Step(Plan(state.lock, state.agent, [entry])), self.wait_for_redis)
            except NotApplied:
                was_away = True
        return was_away

    # ---- outages -----------------------------------------------------------------------------

    def wait_for_redis(self) -> None:
        """Refuse all callers and return when Redis is back. Places and leases are kept, and the agent goes on.

        Raises:
            AlreadyAnswered: the session must stop.
        """
        with self._outage.declared():
            for _ in self.commits.retries():
                self._outage.check(self.commits.unconfirmed)

    def return_from_outage(self) -> None:
        """Forget who was present, and give every timer its full time again (`max_hold` goes on with the rest)."""
        left, state = self.context.lease_time.hold_left(), self.context.state
        # If Redis goes away again during this step, the end of that outage runs this again.
        with contextlib.suppress(NotApplied):
            self.run(Step(forget_presence(state.lock, state.agent, self.context.waiters.has), self.cause))
        self.context.lease_time.restart(left)


def do_not_wait() -> None:
    """End a step at the first outage. The next owner begins a new epoch anyway."""
    raise NotApplied
