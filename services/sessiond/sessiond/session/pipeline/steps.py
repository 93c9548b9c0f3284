"""One step of a session: the machines decide, one script commits, then lines are written and callers told.

What the commit refuses was never done. Used by the owner loop only.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from sessiond.agent import machine as agent_machine
from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock import queries
from sessiond.session import views
from sessiond.session.callers.turns import TurnBook
from sessiond.session.fault_points import hold_step
from sessiond.session.inbox import Answered, Inbox
from sessiond.session.outage import Outages
from sessiond.session.pipeline.commits import Commits, NotApplied
from sessiond.session.pipeline.effects import Acts
from sessiond.session.pipeline.persistence import Writes
from sessiond.session.pipeline.plan import Plan, compose
from sessiond.session.state import LeaseTime, Standing
from sessiond.session.timers import Deadlines
from sessiond.settings import Settings
from sessiond.store import codec

SNAPSHOT_EVERY = 500


class Steps:
    """Makes the steps of one session, one at a time."""

    def __init__(
        self, settings: Settings, standing: Standing, inbox: Inbox, turns: TurnBook, deadlines: Deadlines,
        lease_time: LeaseTime, writes: Writes, commits: Commits, outages: Outages, acts: Acts,
    ) -> None:  # fmt: skip
        self._settings, self._standing, self._inbox, self._turns = settings, standing, inbox, turns
        self._deadlines, self._lease_time = deadlines, lease_time
        self._writes, self._commits, self._outages, self._acts = writes, commits, outages, acts
        self._snapshot_at = 0

    def step(
        self, *events: ev.Event | st.Event, ledger: Sequence[ev.Entry] = (), commands: Sequence[codec.Command] = ()
    ) -> Plan:
        """Decides, commits, acts. Raises events.Refused (nothing happened) and Answered (Redis was away).

        After an outage what comes from the agent is decided anew; a request's step is dropped, and a deadline's too:
        it has its full time again.
        """
        while True:
            plan = self.decide(*events)
            plan.ledger[:0] = ledger
            try:
                self.commit(plan, commands)
                return plan
            except NotApplied:
                if self._inbox.serving or any(isinstance(e, (ev.Due, st.Due)) for e in events):
                    raise Answered from None

    @property
    def told(self) -> bool:
        """Whether the call that is served was answered already, because Redis was away."""
        return self._inbox.told

    def decide(self, *events: ev.Event | st.Event) -> Plan:
        """What these events make of the present state. Raises as `composition.compose` does."""
        return compose(self._standing.lock, self._standing.agent, events)

    def commit(
        self, plan: Plan, commands: Sequence[codec.Command] = (), *, begins: bool = False, wait: bool = True,
        first: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Commits and acts, `first` before all else; a plan that writes nothing is not committed.

        `begins`: the epoch, with what was stored before it. Raises as Commits.push does.
        """
        written = self._writes.of(plan)
        self._hold("decided", plan)
        was_away, stored = False, [*commands, *written.commands]
        if stored and not plan.ledger:
            # What is kept beside the machines (the rest of `max_hold`, the agent's record): no step without an entry.
            plan.ledger.append(("kept", {"what": sorted({name for _, name, *_ in stored})}))
        if stored or plan.ledger:
            self._snapshot(plan)
            was_away = self._push(stored, plan, written.grant, begins, self._outages.wait if wait else _not_applied)
        self._standing.extras = written.extras
        self._adopt(plan, begins)
        self._hold("committed", plan)
        was_away |= self._still_owner()
        first()
        self._acts.act(plan)
        self._hold("acted", plan)
        if was_away:
            self.back()

    def _hold(self, point: str, plan: Plan) -> None:
        hold_step(self._settings.hooks_dir, self._commits.session, point, plan.ledger)

    def _still_owner(self) -> bool:
        """Only an owner acts: a process that stood still may have been replaced, and a step that changes nothing tells.

        Returns whether Redis was away meanwhile. Raises store.Deposed.
        """
        was_away = False
        while self._commits.unsure > self._settings.times.owner_doubt:
            try:
                entry = ("still-owner", {"seconds": round(self._commits.unsure, 1)})
                was_away |= self._commits.push([], [entry], None, self._outages.wait)
            except NotApplied:
                was_away = True
        return was_away

    def _push(
        self, commands: list[codec.Command], plan: Plan, grant: tuple[str, frozenset[str]] | None, begins: bool,
        outage: Callable[[], None],
    ) -> bool:  # fmt: skip
        try:
            return self._commits.push(commands, plan.ledger, grant, outage)
        except NotApplied:
            self._turns.unstage()
            if not begins:  # else there is nothing yet to come back to
                self.back()
            raise
        except BaseException:
            self._turns.unstage(unknown=True)
            raise

    def back(self) -> None:
        """After an outage nobody is present, and every deadline has its full time again (`max_hold` what was left)."""
        left = self._lease_time.hold_left()
        # If Redis goes away again meanwhile, that outage has its own end.
        with contextlib.suppress(NotApplied):
            self.commit(self._outages.absences(self._standing))
        self._lease_time.restart(left)

    def _snapshot(self, plan: Plan) -> None:
        if self._commits.version - self._snapshot_at >= SNAPSHOT_EVERY:
            plan.ledger.append(("snapshot", views.snapshot(plan.lock)))
        if any(event == "snapshot" for event, _ in plan.ledger):
            self._snapshot_at = self._commits.version

    def _adopt(self, plan: Plan, begins: bool) -> None:
        now = self._standing
        if plan.agent.phase is not now.agent.phase:
            now.idle_since = time.monotonic()
        changed = begins or plan.lock is not now.lock or plan.agent is not now.agent
        now.lock, now.agent = plan.lock, plan.agent
        self._writes.committed(plan)
        if changed:
            self._deadlines.want(self._timers())

    def _timers(self) -> dict[Any, float]:
        times, now = self._settings.times, self._standing
        found: dict[Any, float] = {("lock", t): s for t, s in queries.timers(now.lock, times).items()}
        found.update({("agent", t): s for t, s in agent_machine.timers(now.agent, times).items()})
        return found


def _not_applied() -> None:
    """An outage that nobody waits out: whoever claims the session next does so under a new epoch."""
    raise NotApplied
