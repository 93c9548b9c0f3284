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


class Here:
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
def here(request: pytest.FixtureRequest, redis_server: Redis, tmp_path: Path) -> Iterator[Here]:
    found = Here(redis_server, tmp_path, getattr(request, "param", Times()))
    yield found
    found.session.stop(STOPPING)


def test_a_turn_that_waits_for_an_end_starts_no_agent_in_a_session_that_stops(here: Here) -> None:
    here.run(lambda: here.session.pipeline.step(st.Stop("sleep")))
    waits = here.turn("#say two")
    here.session.stop(STOPPING)
    with gevent.Timeout(60):
        assert here.slots.take(here.session.pipeline.context), "the slot is free again"
    assert here.result(waits)["outcome"] != "completed"
    assert not [p for p in psutil.Process().children(recursive=True) if "scripted_agent" in " ".join(p.cmdline())]


def test_what_a_process_says_behind_its_garbage_costs_nothing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is being ended. One read of it may hold 32,000 lines, and all sessions share one event loop."""
    made, step = [], here.session.pipeline.step
    monkeypatch.setattr(here.session.pipeline, "step", lambda *a, **more: (made.append(a), step(*a, **more))[1])
    assert here.result(here.turn("#at text raw=shorts\n#say two"))["reason"] == "garbage"
    assert sum(isinstance(event, st.Fault) for events in made for event in events) == 1


def test_a_ticket_that_was_refused_leaves_nothing_behind(here: Here, redis_server: Redis) -> None:
    redis_server.kill9()
    with pytest.raises(Problem, match="Redis"):
        here.commands.take(Kind.HANDLER, 5, "refused")
    redis_server.start()
    now = here.session.reader
    with gevent.Timeout(60):
        while not now.lock.queue:
            with contextlib.suppress(Problem):
                here.commands.take(Kind.WORKER, 5, "kept")
            gevent.sleep(0.01)
    assert {t.key for t in now.lock.queue} == {"kept"} and set(now.taken) == set(now.lock.tickets)


@pytest.mark.parametrize("here", [Times(drain_deadline=0.05)], indirect=True)
def test_no_deadline_waits_for_the_end_of_what_one_read_brought(here: Here) -> None:
    """One read holds some thousand lines, and each of them is a step with its commit."""
    turn = here.turn("#at interrupt raw=results silent\n#tokens 100000\n#pace 5ms")
    assert next(iter(turn))[0] == "agent"
    here.commands.cancel_turn(turn.turn, None)
    assert here.result(turn)["reason"] == "drain-deadline"
    events = [e["event"] for e in here.session.store.ledger(None, 10_000)]
    told = events[events.index("interrupt") : events.index("recovery")].count("foreign")
    assert 0 < told < ODD_ALLOWED


@pytest.mark.parametrize("here", [Times(start_deadline=2.0)], indirect=True)
def test_a_deadline_that_the_one_before_it_made_needless_does_nothing(here: Here) -> None:
    """The timers of the process and of its turn have both run out when the loop checks: there is one recovery."""
    pipeline, now = here.session.pipeline, here.session.reader
    here.run(lambda: pipeline.step(st.Stop("restart")))
    here.until(lambda: now.agent.phase is st.Phase.ASLEEP)
    faults = here.place / "work" / "o" / "r" / "faults"
    faults.write_text("slow-start=60000")
    starts = here.turn("#say never")
    here.until(lambda: not faults.read_text())
    here.commands.cancel_turn(starts.turn, None)
    assert here.result(starts)["outcome"] == "cancelled"
    given = here.turn("#say given")
    here.run(lambda: time.sleep(2.1))
    assert here.result(given)["outcome"] == "completed"
    recoveries = [e["reason"] for e in here.session.store.ledger(None, 10_000) if e["event"] == "recovery"]
    assert recoveries == ["start-deadline"]


def test_what_is_open_in_an_older_redis_and_here_no_more_is_lost(here: Here, redis_server: Redis) -> None:
    """Redis lost a turn's end, and this owner no longer knows it either: the key can be used again."""
    turn = here.commands.start_turn(here.secret, TurnRequest("#say once", key="k"))
    assert here.result(turn)["outcome"] == "completed"
    name = f"sessiond:{{o/r}}:turn:{turn.turn}"
    with redis_library.Redis.from_url(redis_server.url) as redis:
        record = orjson.loads(redis.get(name))
        redis.set(name, orjson.dumps({**record, "state": "started", "outcome": None}))
    seen = here.commands.turn(turn.turn)
    assert (seen["state"], seen["outcome"], seen["reason"]) == ("closed", "lost", "restored")
    again = here.commands.start_turn(here.secret, TurnRequest("#say once", key="k"))
    assert here.result(again)["outcome"] == "completed" and again.turn != turn.turn


@pytest.mark.parametrize("here", [Times(claim_window=0.3)], indirect=True)
def test_a_deadline_waits_for_what_came_in_before_it_ran_out(here: Here) -> None:
    """The grant is claimed in time, but the claim waits behind a slow step."""
    here.commands.release(here.secret)
    ticket, _ = here.commands.take(Kind.HANDLER, 5, None)
    secret = here.commands.wait(ticket["id"], "me").answer(5)["lease"]["secret"]
    slow = gevent.spawn(here.run, lambda: time.sleep(0.5))
    claims = gevent.spawn(here.commands.renew, secret)
    gevent.joinall([slow, claims], timeout=60)
    assert claims.successful(), claims.exception
