"""A step in all stages of the pipeline. The store is a list."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock.rules import Kind
from sessiond.problems import Problem
from sessiond.session.agent.slots import Slots
from sessiond.session.callers.turn_record import TurnRecord
from sessiond.session.callers.turn_stream import TurnStream
from sessiond.session.callers.waiters import Waiter
from sessiond.session.commands import ReleaseLease, WaitTicket
from sessiond.session.context import SessionContext
from sessiond.session.handlers.tickets import wait_ticket
from sessiond.session.inbox import AlreadyAnswered
from sessiond.session.pipeline.commits import NotApplied
from sessiond.session.pipeline.runner import Pipeline, do_not_wait
from sessiond.session.pipeline.step import Step
from sessiond.settings import Settings
from sessiond.store.codec import Meta
from sessiond.store.connection import RedisUnavailable
from sessiond.store.ownership import Ownership
from sessiond.store.store import Ahead, CommitResult, Store, StoreStep

H = Kind.HANDLER


class ListStore(Store):
    """A store that keeps the steps in a list. The next step raises `fail` once, before or after it is kept."""

    def __init__(self, actions: list[str]) -> None:
        super().__init__("redis://127.0.0.1:1", "o/r", "i")
        self.actions = actions
        self.steps: list[StoreStep] = []
        self.fail: tuple[str, Exception] | None = None

    def commit(self, step: StoreStep) -> CommitResult:
        fail, self.fail = self.fail, None
        if fail is not None and fail[0] == "before":
            raise fail[1]
        self.steps.append(step)
        self.actions.append("commit")
        if fail is not None:
            raise fail[1]
        return CommitResult.APPLIED

    def read_meta(self) -> Meta:
        last = self.steps[-1] if self.steps else None
        return Meta(epoch=1, version=len(self.steps), step=last.step_id if last else "")

    def writable(self) -> None:
        return None

    @property
    def events(self) -> list[list[str]]:
        """The ledger events of each step."""
        return [[event for event, _ in step.ledger] for step in self.steps]


class Scene:
    """A pipeline with a recording store and agent. `actions` lists its actions in order."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.actions: list[str] = []
        self.store = ListStore(self.actions)
        settings = Settings(state_dir=place, instance="i", host_name="h", model="m")
        self.context = SessionContext(settings, self.store, Slots(1))
        self.pipeline = Pipeline(self.context, Ownership(epoch=1, version=0, predecessor=""))
        monkeypatch.setattr(self.context.link, "write", lambda data: self.actions.append("write"))
        monkeypatch.setattr(self.context.link, "start", lambda *_: self.actions.append("start"))

    def waiter(self, ticket: str, holder: str) -> Waiter:
        actions = self.actions

        class Recorded(Waiter):
            def reply(self, body: dict[str, Any]) -> None:
                actions.append(f"reply {body['state']}")
                super().reply(body)

            def refuse(self, problem: Exception) -> None:
                actions.append(f"refuse {problem.type if isinstance(problem, Problem) else problem}")
                super().refuse(problem)

        return Recorded(ticket, holder, lambda waiter, hung_up: None)

    def wait(self, ticket: str, holder: str) -> Waiter:
        waiter = self.waiter(ticket, holder)
        wait_ticket(self.pipeline, WaitTicket(waiter))
        return waiter

    def lease(self, ticket: str, holder: str) -> int:
        """Grant a worker's lease and return its fence."""
        self.pipeline.step(ev.Take(ticket, Kind.WORKER, 30))
        self.wait(ticket, holder)
        lease = self.context.state.lock.lease
        assert lease is not None
        return lease.fence

    @staticmethod
    def record(fence: int) -> TurnRecord:
        return TurnRecord(id="tu-1", fence=fence, ticket="w", kind=Kind.WORKER, conversation={})

    def begin_turn(self, fence: int) -> TurnStream:
        """Start a turn whose agent writes nothing."""
        stream, commands = self.context.turns.accept(self.record(fence))
        turn = st.AgentTurn("tu-1", "u", "do it", Kind.WORKER, "m")
        self.pipeline.step(ev.AcceptTurn(fence, "tu-1"), st.Begin(turn), commands=commands)
        agent = self.context.state.agent
        assert agent.turn is not None
        running = replace(agent.turn, written=True, taken=True, started=True)
        self.context.state.agent = replace(agent, phase=st.Phase.IN_TURN, turn=running, said="running")
        return stream


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_a_waiter_is_answered_only_after_the_commit_of_its_grant(scene: Scene) -> None:
    scene.pipeline.step(ev.Take("tk-1", H, 5))
    waiter = scene.wait("tk-1", "one")
    assert scene.actions == ["commit", "commit", "reply granted"]
    granted = waiter.answer(0)["lease"]
    extras, lock = scene.context.state.lease_extras, scene.context.state.lock
    assert extras is not None and lock.lease is not None
    assert (granted["secret"], granted["fence"]) == (extras.secret, lock.lease.fence)
    assert scene.store.steps[-1].grant == ("tk-1", frozenset())
    assert scene.context.timers.left(("lock", ev.Timer("claim", str(lock.lease.fence)))) is not None


def test_an_interrupt_is_written_before_any_caller_is_answered(scene: Scene) -> None:
    fence = scene.lease("w", "worker")
    scene.wait("w", "another")  # registered, because the lease may still be lost
    scene.begin_turn(fence)
    scene.actions.clear()
    scene.pipeline.step(ev.ForceRelease(fence))
    assert scene.actions == ["commit", "write", "refuse ticket-ended"]


def test_a_step_that_writes_nothing_is_not_committed(scene: Scene) -> None:
    scene.lease("w", "worker")
    before = list(scene.actions)
    scene.pipeline.step()
    assert scene.actions == before


def test_a_step_after_a_second_writer_changes_no_state(scene: Scene) -> None:
    fence = scene.lease("w", "worker")
    state, record = scene.context.state.lock, scene.record(fence)
    scene.store.fail = ("before", Ahead(7))
    _, commands = scene.context.turns.accept(record)
    with pytest.raises(ev.InvariantBroken, match="single_writer"):
        scene.pipeline.step(ev.AcceptTurn(fence, record.id), commands=commands)
    assert scene.context.state.lock is state and scene.context.turns.current is None


def test_a_step_whose_answer_is_lost_is_committed_once(scene: Scene) -> None:
    scene.store.fail = ("after", RedisUnavailable("the answer is lost"))
    scene.pipeline.step(ev.Take("tk-1", H, 5))
    assert [events for events in scene.store.events if "taken" in events] == [["taken"]]
    assert scene.pipeline.commits.version == len(scene.store.steps)
    assert "tk-1" in scene.context.state.lock.tickets


def test_after_an_outage_events_of_the_agent_are_decided_again(scene: Scene) -> None:
    scene.begin_turn(scene.lease("w", "worker"))
    scene.store.fail = ("before", RedisUnavailable("the command is lost"))
    plan = scene.pipeline.step(st.Fault("garbage", "no JSON"), ledger=[("said", {})])
    assert scene.store.events[-1][:2] == ["said", "fault"]
    assert sum("fault" in events for events in scene.store.events) == 1
    assert scene.context.state.agent is plan.agent


def test_after_an_outage_the_step_of_a_request_is_dropped(scene: Scene) -> None:
    inbox = scene.context.inbox
    inbox.serving = inbox.post(ReleaseLease("s"))
    scene.store.fail = ("before", RedisUnavailable("the command is lost"))
    with pytest.raises(AlreadyAnswered):
        scene.pipeline.step(ev.Take("tk-1", H, 5))
    assert inbox.serving_answered and not scene.context.state.lock.tickets


def test_after_an_outage_the_step_of_a_timer_is_dropped_and_the_timer_runs_again(scene: Scene) -> None:
    fence = scene.lease("w", "worker")
    scene.store.fail = ("before", RedisUnavailable("the command is lost"))
    with pytest.raises(AlreadyAnswered):
        scene.pipeline.step(ev.Due(ev.Timer("claim", str(fence))))
    assert scene.context.state.lock.lease is not None
    assert (scene.context.timers.left(("lock", ev.Timer("claim", str(fence)))) or 0) > 4


def test_an_outage_refuses_the_waiters_and_clears_their_presence(scene: Scene) -> None:
    scene.lease("w", "worker")
    scene.pipeline.step(ev.Take("w2", Kind.WORKER, 30))
    waiter = scene.wait("w2", "two")
    scene.store.fail = ("after", RedisUnavailable("the answer is lost"))
    scene.pipeline.step(ev.Take("w3", Kind.WORKER, 30))
    with pytest.raises(Problem, match="redis-away"):
        waiter.answer(0)
    assert scene.store.events[-1] == ["absent"]
    assert not scene.context.state.lock.tickets["w2"].present


def test_the_step_that_begins_an_epoch_does_not_wait_for_redis(scene: Scene) -> None:
    scene.store.fail = ("before", RedisUnavailable("the command is lost"))
    step = Step(scene.pipeline.decide(), begins_epoch=True)
    step.plan.ledger.append(("epoch", {}))
    with pytest.raises(NotApplied):
        scene.pipeline.run(step, do_not_wait)
    assert scene.store.steps == []


def test_a_closed_turn_is_stored_before_its_reader_gets_the_result(scene: Scene) -> None:
    fence = scene.lease("w", "worker")
    stream = scene.begin_turn(fence)
    scene.pipeline.step(st.Exited(1, "died"))
    (event,) = [item for item in stream if item[0] == "result"]
    assert event[1]["outcome"] == "lost"
    (stored,) = [command for command in scene.store.steps[-1].commands if command[1] == "turn:tu-1"]
    assert json.loads(stored[-1])["outcome"] == "lost"
    assert scene.store.events[-1].count("turn-closed") == 1
