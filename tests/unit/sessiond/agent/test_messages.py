"""No message and no exit of the agent causes a refused step, and the next holder always gets the lock."""

import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sessiond.agent import machine, protocol
from sessiond.agent import state as st
from sessiond.agent.messages import NEEDED
from sessiond.agent.state import Phase
from sessiond.agent.transitions import ALIVE
from sessiond.lock import events as ev
from sessiond.lock import queries
from sessiond.lock.rules import Kind, Times
from sessiond.lock.state import Lock
from sessiond.session.pipeline.plan import Plan, compose
from support.size import FULL

STEPS = 150
SEEDS = 900 if FULL else 150


class RandomSession:
    """A session with an agent that writes random messages."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.lock = Lock()
        self.agent = st.Agent("c")
        self.history: list[str] = []
        self.ended_turns: list[str] = []
        self.turns = 0
        self.tickets = 0
        self.process = self.spawned = False
        self.strays_left = False
        """Whether the last examination found stray processes."""
        self.kinds: Counter[str] = Counter()

    def step(self, *events: Any) -> None:
        self.history.append(", ".join(map(repr, events))[:200])
        plan = compose(self.lock, self.agent, events)
        self._check(plan)
        self.lock, self.agent = plan.lock, plan.agent
        for output in plan.outputs:
            if isinstance(output, st.Launch):
                self.process, self.spawned = True, False
            if isinstance(output, st.Asked):
                self.step(st.AnswerQuestion(output.request))

    def _check(self, plan: Plan) -> None:
        over = [o.turn for o in plan.outputs if isinstance(o, st.TurnOver)]
        assert not set(over) & set(self.ended_turns), "each turn has one outcome"
        self.ended_turns += over
        assert plan.lock.turn == (plan.agent.turn.id if plan.agent.turn else None), "one_turn_open"
        user = [o for o in plan.outputs if isinstance(o, st.Write) and o.what == "user"]
        assert not user or (plan.lock.lease is not None and len(user) == 1), "single_writer"
        if user:
            sent = plan.agent
            assert sent.said == "idle" and not (sent.dirty or sent.foreign or sent.questions or sent.requests)
            assert sent.turn is not None and (sent.turn.composed is False or sent.rules is sent.turn.kind)
        assert plan.agent.leased == (plan.lock.lease is not None)
        if plan.grant is not None and plan.agent.phase in ALIVE:
            left = plan.agent
            assert not (left.questions or left.dirty or left.foreign or "interrupt" in left.requests.values())
            assert left.said == "idle" or left.phase is Phase.STARTING
            assert not self.strays_left, "nothing_outlives_its_lease"
        if plan.grant is not None:
            lives = plan.agent.phase in ALIVE or plan.agent.phase is Phase.STOPPING
            assert not (
                lives
                and (
                    plan.agent.tasks or plan.agent.strays or (self.agent.turn and self.agent.turn.written and not over)
                )
            ), "nothing_outlives_its_lease"

    # ---- events ------------------------------------------------------------------------------

    def random_event(self) -> None:
        often = [self._line] * 6 + [self._holder, self._process, self._timer] * 2
        self.dice.choice([*often, self._operator, self._lock_timer])()

    def _line(self) -> None:
        if self.process and self.spawned:
            self.step(self.dice.choice([self._good, self._bad])())

    def _answer(self, request: str) -> st.Event:
        self._look(request)
        return st.Got(protocol.Response(request, True, {}))

    def _look(self, request: str) -> None:
        """Examine the process tree, as the session does at each fence response."""
        if self.agent.requests.get(request) == "fence":
            self.strays_left = self.dice.random() < 0.3
            self.step(st.TreeExamined(self.strays_left))

    def _good(self) -> st.Event:
        """Return a message that claude could write now."""
        turn, requests = self.agent.turn, sorted(self.agent.requests)
        if requests and self.dice.random() < 0.6:
            return self._answer(self.dice.choice(requests))
        if turn is None or not turn.written or (turn.result is not None and turn.lifecycle == "completed"):
            return st.Got(protocol.StateChanged("idle"))
        if not turn.taken:
            return st.Got(protocol.Lifecycle(turn.uuid, "started"))
        if turn.result is None:
            return st.Got(protocol.Result((turn.uuid,), None, False, "completed", "done"))
        return st.Got(protocol.Lifecycle(turn.uuid, "completed"))

    def _bad(self) -> st.Event:
        dice, turn = self.dice, self.agent.turn
        uuid = turn.uuid if turn is not None and dice.random() < 0.5 else "never sent"
        request = dice.choice([*sorted(self.agent.requests), "never asked"])
        uuids = dice.choice([(), (uuid,), ("another", uuid)])
        origin, error = dice.choice([None, "peer"]), dice.random() < 0.5
        capable = NEEDED if dice.random() < 0.95 else frozenset[str]()
        found: Sequence[protocol.Message] = (
            protocol.StateChanged(dice.choice(["idle", "running", "requires_action", "?"])),
            protocol.Lifecycle(uuid, dice.choice(["queued", "started", "completed", "cancelled", "?"])),
            protocol.Init(dice.choice([self.agent.conversation, "renamed"]), "m", capable, "1"),
            protocol.Result(
                uuids, origin, error, dice.choice(["completed", "aborted_tools", None]), "text", status=None
            ),
            protocol.Response(request, dice.random() < 0.7, {}, "refused"),
            protocol.Question(dice.choice("ab"), dice.choice(["Bash", "Read"]), {}),
            protocol.QuestionCancelled(dice.choice("ab")),
            protocol.Tasks(frozenset(dice.sample("xyz", dice.randrange(3)))),
            protocol.Other("stream_event"),
        )
        if dice.random() < 0.02:
            return st.Fault("garbage", "?")
        message = dice.choice(found)
        if isinstance(message, protocol.Response):
            self._look(message.request_id)
        return st.Got(message)

    def _process(self) -> None:
        if self.process and not self.spawned:
            self.spawned = True
            self.step(st.Spawned())
        elif self.process and (self.agent.phase is Phase.STOPPING or self.dice.random() < 0.1):
            self.exit()

    def exit(self) -> None:
        self.strays_left = False
        self.process, tried = False, self.spawned or self.dice.random() < 0.5
        if tried and self.dice.random() < 0.1:
            lost = st.BeginConversation(f"c{self.dice.random()}", "history-lost")
            self.step(lost, st.Exited(1, "No conversation found", "history-lost"))
        else:
            self.step(st.Exited(self.dice.choice([0, 1, 137, None]), "gone", tried=tried))

    def _timer(self) -> None:
        due = sorted(machine.timers(self.agent, Times()))
        if due and self.dice.random() < 0.1:
            self.step(st.Due(*self.dice.choice(due)))

    def _operator(self) -> None:
        """Make an operator's action, the service's shutdown, or another session's request for the slot."""
        dice, held = self.dice, self.lock.lease or self.lock.drain
        what = dice.choice(["force", "restart", "sleep", "shutdown", "afresh"])
        self.kinds[what] += 1
        if what == "force" and held is not None:
            with contextlib.suppress(ev.NotHeld):  # its tree is already being stopped
                self.step(ev.ForceRelease(held.fence))
        elif what == "afresh" and self.lock.turn is None:
            self.step(st.BeginConversation(f"c{dice.random()}", "asked"), st.Stop("conversation"))
        elif what in ("restart", "sleep", "shutdown"):
            self.step(st.Stop(what))

    def _lock_timer(self) -> None:
        due = sorted(queries.timers(self.lock, Times()), key=str)
        if due:
            self.kinds["lock's timer"] += 1
            self.step(ev.Due(self.dice.choice(due)))

    def _holder(self) -> None:
        lock, dice = self.lock, self.dice
        if lock.lease is None or dice.random() < 0.2:
            self.wants(dice.choice([Kind.HANDLER, Kind.WORKER]))
        elif lock.turn is None and self.agent.phase is not Phase.BROKEN:
            self.turns += 1
            turn = st.AgentTurn(f"t{self.turns}", f"u{self.turns}", "p", lock.lease.kind, dice.choice("mn"))
            self.step(ev.AcceptTurn(lock.lease.fence, turn.id), st.Begin(turn))
        elif lock.turn is not None and dice.random() < 0.3:
            self.step(st.Cancel(lock.turn, "cancelled"))
        elif dice.random() < 0.3:
            self.step(ev.Release(lock.lease.fence))

    def wants(self, kind: Kind) -> None:
        self.tickets += 1
        name = f"k{self.tickets}"
        self.step(ev.Take(name, kind, 5 if kind is Kind.HANDLER else 30, None))
        self.step(ev.Wait(name, f"holder of {name}"))

    def ends(self) -> None:
        """Silence the agent and release the lease. The next ticket must get the lock within the deadlines."""
        if self.lock.lease is not None:
            self.lock = replace(self.lock, tickets={self.lock.lease.ticket: self.lock.tickets[self.lock.lease.ticket]})
            self.step(ev.Release(self.lock.lease.fence))
        for _ in range(4):
            if not self.lock.open:
                break
            if self.agent.phase is Phase.STOPPING:
                self.exit()
            else:
                self.step(st.Due(*next(t for t in machine.timers(self.agent, Times()) if t[0] == "drain")))
        self.wants(Kind.HANDLER)
        assert self.lock.lease is not None, "every_present_ticket_is_served"


@pytest.mark.parametrize("part", range(3))
def test_any_message_is_accepted_in_any_state(part: int) -> None:
    kinds: Counter[str] = Counter()
    for seed in range(part, SEEDS, 3):
        play = RandomSession(seed)
        try:
            for _ in range(STEPS):
                play.random_event()
            play.ends()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r} after\n" + "\n".join(play.history[-12:])) from error
        kinds += play.kinds
    assert set(kinds) == {"force", "restart", "sleep", "shutdown", "afresh", "lock's timer"}
