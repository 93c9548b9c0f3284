"""The owner loop, run in this process."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import orjson
import psutil
import pytest
import redis as redis_library

from sessiond.agent import state as st
from sessiond.agent.messages import ODD_ALLOWED
from sessiond.lock.rules import Kind, Times
from sessiond.problems import Problem
from sessiond.service.commands import SessionCommands, TurnRequest
from sessiond.session.agent.slots import Slots
from sessiond.session.loop import Session
from sessiond.settings import Settings
from sessiond.store.ownership import Instance, OwnershipStore
from sessiond.store.store import Store
from support.servers import SCRIPTED, Redis
from support.session.in_loop import TEST_HANDLERS, RunInLoop

STOPPING = Problem("stopping", 503, "stopping")


class LocalSession:
    """A session whose holder has had one turn."""

    def __init__(self, redis: Redis, place: Path, times: Times) -> None:
        self.place, command = place, tuple(SCRIPTED)
        settings = Settings(
            redis_url=redis.url, state_dir=place, instance="i", host_name="h", agent_command=command, times=times
        )  # fmt: skip
        owned = OwnershipStore(redis.url, Instance("i", settings.url, place, "h"), 15).acquire("o/r")
        self.slots = Slots(1)
        self.session = Session(settings, Store(redis.url, "o/r", "i"), owned, self.slots, TEST_HANDLERS)
        self.session.start()
        self.commands = SessionCommands(self.session)
        ticket, _ = self.commands.take(Kind.HANDLER, 5, None)
        self.secret = self.commands.wait(ticket["id"], "me").answer(5)["lease"]["secret"]
        assert self.result(self.turn("#say one"))["outcome"] == "completed"

    @staticmethod
    def until(check: Callable[[], bool]) -> None:
        with gevent.Timeout(60):
            while not check():
                gevent.sleep(0.01)

    def run(self, work: Callable[[], Any]) -> None:
        self.session.ask(RunInLoop(work))

    def turn(self, prompt: str) -> Any:
        return self.commands.start_turn(self.secret, TurnRequest(prompt))

    @staticmethod
    def result(stream: Any) -> dict[str, Any]:
        with gevent.Timeout(60):
            return next(data for name, data in stream if name == "result")


@pytest.fixture
def local(request: pytest.FixtureRequest, redis_server: Redis, tmp_path: Path) -> Iterator[LocalSession]:
    found = LocalSession(redis_server, tmp_path, getattr(request, "param", Times()))
    yield found
    found.session.stop(STOPPING)


def test_a_turn_that_waits_for_an_exit_starts_no_agent_in_a_stopping_session(local: LocalSession) -> None:
    local.run(lambda: local.session.pipeline.step(st.Stop("sleep")))
    waiting = local.turn("#say two")
    local.session.stop(STOPPING)
    with gevent.Timeout(60):
        assert local.slots.take(local.session.pipeline.context), "the slot is free again"
    assert local.result(waiting)["outcome"] != "completed"
    assert not [p for p in psutil.Process().children(recursive=True) if "scripted_agent" in " ".join(p.cmdline())]


def test_lines_after_garbage_cause_no_steps(local: LocalSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is being stopped. One read may return 32,000 lines, and all sessions share one event loop."""
    made, step = [], local.session.pipeline.step
    monkeypatch.setattr(local.session.pipeline, "step", lambda *a, **more: (made.append(a), step(*a, **more))[1])
    assert local.result(local.turn("#at text raw=shorts\n#say two"))["reason"] == "garbage"
    assert sum(isinstance(event, st.Fault) for events in made for event in events) == 1


def test_a_refused_ticket_leaves_no_state(local: LocalSession, redis_server: Redis) -> None:
    redis_server.kill9()
    with pytest.raises(Problem, match="Redis"):
        local.commands.take(Kind.HANDLER, 5, "refused")
    redis_server.start()
    now = local.session.reader
    with gevent.Timeout(60):
        while not now.lock.queue:
            with contextlib.suppress(Problem):
                local.commands.take(Kind.WORKER, 5, "kept")
            gevent.sleep(0.01)
    assert {t.key for t in now.lock.queue} == {"kept"} and set(now.taken) == set(now.lock.tickets)


@pytest.mark.parametrize("local", [Times(drain_deadline=0.05)], indirect=True)
def test_a_deadline_expires_while_the_lines_of_one_read_are_processed(local: LocalSession) -> None:
    """One read returns some thousand lines, and each line is a step with its commit."""
    turn = local.turn("#at interrupt raw=results silent\n#tokens 100000\n#pace 5ms")
    assert next(iter(turn))[0] == "agent"
    local.commands.cancel_turn(turn.turn, None)
    assert local.result(turn)["reason"] == "drain-deadline"
    events = [e["event"] for e in local.session.store.ledger(None, 10_000)]
    told = events[events.index("interrupt") : events.index("recovery")].count("foreign")
    assert 0 < told < ODD_ALLOWED


@pytest.mark.parametrize("local", [Times(start_deadline=2.0)], indirect=True)
def test_a_deadline_does_nothing_after_an_earlier_one_started_the_recovery(local: LocalSession) -> None:
    """The timers of the process and of its turn expire before the loop checks. Only one recovery happens."""
    pipeline, now = local.session.pipeline, local.session.reader
    local.run(lambda: pipeline.step(st.Stop("restart")))
    local.until(lambda: now.agent.phase is st.Phase.ASLEEP)
    faults = local.place / "work" / "o" / "r" / "faults"
    faults.write_text("slow-start=60000")
    starts = local.turn("#say never")
    local.until(lambda: not faults.read_text())
    local.commands.cancel_turn(starts.turn, None)
    assert local.result(starts)["outcome"] == "cancelled"
    given = local.turn("#say given")
    local.run(lambda: time.sleep(2.1))
    assert local.result(given)["outcome"] == "completed"
    recoveries = [e["reason"] for e in local.session.store.ledger(None, 10_000) if e["event"] == "recovery"]
    assert recoveries == ["start-deadline"]


def test_a_turn_that_is_open_only_in_an_older_redis_is_lost(local: LocalSession, redis_server: Redis) -> None:
    """Redis lost the end of a turn, and this owner has forgotten it. The key can be used again."""
    turn = local.commands.start_turn(local.secret, TurnRequest("#say once", key="k"))
    assert local.result(turn)["outcome"] == "completed"
    name = f"sessiond:{{o/r}}:turn:{turn.turn}"
    with redis_library.Redis.from_url(redis_server.url) as redis:
        record = orjson.loads(redis.get(name))
        redis.set(name, orjson.dumps({**record, "state": "started", "outcome": None}))
    seen = local.commands.turn(turn.turn)
    assert (seen["state"], seen["outcome"], seen["reason"]) == ("closed", "lost", "restored")
    again = local.commands.start_turn(local.secret, TurnRequest("#say once", key="k"))
    assert local.result(again)["outcome"] == "completed" and again.turn != turn.turn


@pytest.mark.parametrize("local", [Times(claim_window=0.3)], indirect=True)
def test_a_deadline_waits_for_commands_that_arrived_before_it_expired(local: LocalSession) -> None:
    """The claim arrives in time, but waits for a slow step."""
    local.commands.release(local.secret)
    ticket, _ = local.commands.take(Kind.HANDLER, 5, None)
    secret = local.commands.wait(ticket["id"], "me").answer(5)["lease"]["secret"]
    slow = gevent.spawn(local.run, lambda: time.sleep(0.5))
    claims = gevent.spawn(local.commands.renew, secret)
    gevent.joinall([slow, claims], timeout=60)
    assert claims.successful(), claims.exception
