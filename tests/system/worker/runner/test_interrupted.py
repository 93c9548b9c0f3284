"""A worker that handlers, its own stop or a loss interrupt: its prompts and the state that it keeps."""

import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from sessiond.verify import verify
from sessiond_common.jobs.queue import TASKS
from sessiond_worker.tasks.model import Task, TaskState
from sessiond_worker.tasks.store import RUN
from support.servers import Redis, Sessiond, eventually
from support.worker.worker_scene import SENT, SESSION, Scene, Worker, line, unannounced_repeats

Start = Callable[..., Scene]
FULL = os.environ.get("FULL") == "1"
TURNS, FLURRIES = (10, 30) if FULL else (4, 5)


def test_a_task_that_is_preempted_during_a_turn_continues(scene: Start) -> None:
    s = scene()
    task = s.add(line("done", "finished", tokens="150", pace="10ms"))
    s.in_turn()
    s.handler("IC_42", "What is this?\n#say the answer")
    found = s.wait_for_end(task)
    assert (found.state, found.note, found.used.turns) == ("done", "finished", 1)
    assert (found.interruptions.count, found.interruptions.preemptions) == (1, 1)
    assert found.interruptions.last == "a person's comment came, and comments go first"
    entries = s.entries()
    taken = [e for e in entries if e["event"] == "taken" and e["kind"] == "worker"]
    back = [e for e in entries if e["event"] == "back"]
    assert [e["score"] for e in taken] == [e["score"] for e in back], "one ticket, its place and score kept"
    assert [e["kind"] for e in entries if e["event"] == "granted"] == ["worker", "handler", "worker"]
    cut = next(e for e in entries if e["event"] == "turn-closed")
    print({name: ms for name, ms in cut.items() if name.endswith("_ms")})
    first, comment, again = s.prompts()
    assert "interrupted" not in first and comment.startswith("What is this?")
    assert "You were interrupted by 1 handler (people's comments: IC_42)" in again
    assert "Turn 1 (attempt 1) was sent to you before and you were interrupted in the middle of it" in again
    assert unannounced_repeats(s.prompts()) == []
    assert verify(entries).violations == []


def test_the_next_prompt_reports_a_preemption_between_two_turns(scene: Start) -> None:
    s = scene()
    s.worker.hold("result-received")
    task = s.add(line("more"), line("done"))
    s.worker.wait_until_reached("result-received")
    s.handler("IC_1")
    s.worker.release("result-received")
    found = s.wait_for_end(task)
    assert (found.interruptions.preemptions, found.turn.attempt) == (1, 1)
    assert "1 handler (people's comments: IC_1)" in s.prompts()[-1]
    assert sum(e["event"] == "back" for e in s.entries()) == 1
    assert sum(e["event"] == "taken" and e["kind"] == "worker" for e in s.entries()) == 1, "one ticket"


def test_a_task_continues_through_flurries(scene: Start) -> None:
    """Full size with FULL=1: 10 turns, 30 flurries."""
    s = scene()
    dice = random.Random(5)
    words = line("more", tokens="40", pace="10ms")
    task = s.add(*[words] * (TURNS - 1), line("done", "all turns", tokens="40", pace="10ms"))
    comments = 0
    for flurry in range(FLURRIES):

        def running() -> bool:
            held = s.client.view(SESSION)["holder"]
            return (held is not None and held["kind"] == "worker") or s.tasks.get(task.id).ended

        eventually(running, 30, s.worker.log_text())
        if s.tasks.get(task.id).ended:
            break
        time.sleep(dice.uniform(0, 0.5))
        size = dice.randint(1, 3)
        keys = [f"IC_{flurry}_{n}" for n in range(size)]
        people = [threading.Thread(target=s.handler, args=(key,)) for key in keys]
        for person in people:
            person.start()
        for person in people:
            person.join()
        comments += size
    found = s.wait_for_end(task, 120)
    entries = s.entries()
    preempted = [e for e in entries if e["event"] == "ended" and e["reason"] == "preempted"]
    report = verify(entries)
    print(
        f"{TURNS} turns, {flurry + 1} flurries, {comments} comments: {len(preempted)} preemptions in the ledger, "
        f"{found.interruptions.preemptions} counted by the task, {found.interruptions.count} interruptions, "
        f"{len([p for p in s.prompts() if SENT.search(p)])} worker's prompts"
    )
    assert (found.state, found.note, found.used.turns) == ("done", "all turns", TURNS)
    assert found.interruptions.preemptions == len(preempted) > 0
    assert unannounced_repeats(s.prompts()) == []
    assert (report.inversions, report.misorders, report.violations) == (0, 0, [])
    assert [e for e in entries if e["event"] == "ticket-ended" and e["reason"] not in ("released",)] == []


def keeps_its_score(s: Scene) -> bool:
    return len({e["score"] for e in s.entries() if e["event"] == "taken" and e["kind"] == "worker"}) == 1


def test_a_worker_that_is_stopped_while_it_waits_keeps_its_place(scene: Start) -> None:
    s = scene()
    with s.client.lease(SESSION, key="person", lease_ttl=3):
        task = s.add(line("done"))
        eventually(lambda: [t for t in s.client.view(SESSION)["queue"] if t["present"]], 10)
        begun = time.monotonic()
        assert s.worker.terminate() == 0
        took = time.monotonic() - begun
        print(f"stopped while it waits: {took * 1000:.0f} ms")
        assert took < 3
        assert [t["key"] for t in s.client.view(SESSION)["queue"]] == [task.id]
        s.worker.start()
        eventually(lambda: [t for t in s.client.view(SESSION)["queue"] if t["present"]], 10)
    found = s.wait_for_end(task)
    assert (found.state, found.interruptions.count, found.runs) == ("done", 0, 2)
    assert keeps_its_score(s) and len(s.prompts()) == 1


def test_a_worker_that_is_stopped_during_a_turn_repeats_it_after_the_restart(scene: Start) -> None:
    s = scene()
    task = s.add(line("done", tokens="100", pace="10ms"))
    s.in_turn()
    begun = time.monotonic()
    assert s.worker.terminate() == 0
    print(f"stopped in a turn: {(time.monotonic() - begun) * 1000:.0f} ms")
    assert time.monotonic() - begun < 5
    found = s.tasks.get(task.id)
    assert (found.state, found.interruptions.last, found.turn.open) == ("interrupted", "the worker was stopped", False)
    assert not s.tasks.has_run(task.id) and s.jobs.live(found.job)
    s.worker.start()
    found = s.wait_for_end(task)
    assert (found.state, found.turn.attempt) == ("done", 2)
    assert "in the middle of it: the worker was stopped" in s.prompts()[-1]
    assert keeps_its_score(s) and unannounced_repeats(s.prompts()) == []


def test_the_next_prompt_reports_an_agent_that_died_during_the_turn(scene: Start) -> None:
    s = scene()
    task = s.add(line("done", tokens="100", pace="10ms"))
    s.in_turn()
    os.kill(s.client.view(SESSION)["agent"]["pid"], 9)
    found = s.wait_for_end(task)
    assert (found.state, found.turn.attempt) == ("done", 2)
    assert "was lost" in s.prompts()[-1] and unannounced_repeats(s.prompts()) == []


def test_two_workers_share_the_sessions(scene: Start, redis_server: Redis, request: pytest.FixtureRequest) -> None:
    s = scene()
    other = Worker(redis_server.url, s.service, s.place / "other")
    request.addfinalizer(other.close)
    words = line("done", tokens="30", pace="10ms")
    tasks = [s.add(words, key=f"k{n}", session=f"octo/r{n % 3}") for n in range(6)]
    assert {s.wait_for_end(t).state for t in tasks} == {TaskState.DONE}

    def all_ended() -> bool:
        ends = [(word, task_id) for word, task_id, _ in (*s.worker.runs(), *other.runs())]
        return all(ends.count(("begin", t.id)) == ends.count(("end", t.id)) >= 1 for t in tasks)

    eventually(all_ended, 10, "every run that began has ended")


def test_a_preemption_without_a_running_job_is_counted(scene: Start) -> None:
    """The lease outlives its killed work-horse. A preemption in that time is counted and appears in the next prompt."""
    s = scene()
    s.worker.hold("in-turn")
    task = s.add(line("done", tokens="100", pace="10ms"))
    s.worker.wait_until_reached("in-turn")
    s.worker.release("in-turn")
    s.worker.horse().kill()
    s.handler("IC_9")
    found = s.wait_for_end(task)
    preempted = [e for e in s.entries() if e["event"] == "ended" and e["reason"] == "preempted"]
    assert (found.state, found.turn.attempt, found.interruptions.preemptions, len(preempted)) == ("done", 2, 1, 1)
    assert "IC_9" in s.prompts()[-1] and unannounced_repeats(s.prompts()) == []


def test_the_next_prompt_reports_a_turn_that_outlived_its_work_horse_and_its_lease(scene: Start) -> None:
    s = scene()
    task = s.add(line("more"), line("done", tokens="500", pace="10ms"))
    s.in_turn(2)
    s.worker.horse().kill()
    found = s.wait_for_end(task)
    closed = [e["reason"] for e in s.entries() if e["event"] == "turn-closed"]
    assert (closed, found.turn.attempt) == ([None, "expired", None], 2)
    assert "in the middle of it: the worker could not renew its lease" in s.prompts()[-1]
    assert unannounced_repeats(s.prompts()) == []


def test_a_second_job_for_a_running_task_does_nothing(
    scene: Start, redis_server: Redis, request: pytest.FixtureRequest
) -> None:
    s = scene()
    s.worker.hold("in-turn")
    task = s.add(line("done"))
    s.worker.wait_until_reached("in-turn")
    other = Worker(redis_server.url, s.service, s.place / "other")
    request.addfinalizer(other.close)
    second = s.jobs.enqueue(TASKS, RUN, task.id)
    eventually(lambda: not s.connection.exists(f"rq:job:{second}"), 10, other.log_text())
    assert "another run has the task" in other.log_text() and other.runs() == []
    s.worker.release("in-turn")
    assert (s.wait_for_end(task).state, s.tasks.get(task.id).runs) == ("done", 1)


def test_a_task_continues_after_a_force_release(scene: Start) -> None:
    s = scene()
    task: Task = s.add(line("done", tokens="100", pace="10ms"))
    s.in_turn()
    s.client.force_release(SESSION, s.client.view(SESSION)["holder"]["fence"], "the test's")
    found = s.wait_for_end(task)
    assert (found.state, found.turn.attempt) == ("done", 2)
    assert "an operator ended the lease" in s.prompts()[-1]


def test_a_task_continues_after_a_restart_of_sessiond(scene: Start, sessiond: Callable[..., Sessiond]) -> None:
    s = scene()
    task = s.add(line("more"), line("done", tokens="200", pace="10ms"))
    s.in_turn(2)
    s.service.terminate()
    s.service.start()
    found = s.wait_for_end(task, 60)
    assert found.state == "done" and unannounced_repeats(s.prompts()) == []
