"""Tasks from start to end, with real workers, a real sessiond and the scripted agent."""

import time
from collections.abc import Callable

import pytest

from sessiond_worker.tasks.machine import TaskRefused
from sessiond_worker.tasks.model import TaskBudget, TaskSource, TaskState
from support.servers import eventually
from support.worker.worker_scene import SESSION, Scene, line

Start = Callable[..., Scene]


def test_a_task_can_take_several_turns(scene: Start) -> None:
    s = scene()
    task = s.add(line("more", "a"), line("more", "b"), line("done", "all of it"), asked_by="ann")
    found = s.wait_for_end(task)
    assert (found.state, found.note, found.used.turns, found.turn.key) == ("done", "all of it", 3, f"{task.id}:3:1")
    assert round(found.used.usd, 6) == 0.003 and 0 < found.used.seconds < 5
    entries = s.entries()
    assert sum(e["event"] == "granted" for e in entries) == 1, "several turns under one lease"
    assert [e["reason"] for e in entries if e["event"] == "ended"] == ["released"]
    first, second, _ = s.prompts()
    assert "asked for by ann" in first and "Begin with it now" in first and "Go on with it" in second
    assert s.client.view(SESSION)["queue"] == []


def test_a_missing_outcome_is_requested_once(scene: Start) -> None:
    s = scene()
    found = s.wait_for_end(s.add("say=I forgot the line", line("done", "found it")))
    assert (found.state, found.note, found.used.turns, found.turn.nudge) == ("done", "found it", 1, True)
    task, nudge = s.prompts()
    assert "#script" in task and "no outcome line" in nudge and "#script" not in nudge


def test_a_task_whose_outcome_is_missing_twice_is_stuck(scene: Start) -> None:
    s = scene()
    found = s.wait_for_end(s.add("say=no line"))
    assert (found.state, found.reason) == ("stuck", "its answer had no outcome line, twice")
    assert len(s.prompts()) == 2


def test_a_task_can_end_with_nothing_to_do(scene: Start) -> None:
    s = scene()
    found = s.wait_for_end(s.add(line("nothing-to-do", "it is there already")))
    assert (found.state, found.note) == ("nothing-to-do", "it is there already")


def test_a_stuck_task_releases_its_lease_and_only_its_issue_resumes_it(scene: Start) -> None:
    s = scene()
    task = s.add(line("stuck", "which one?"), line("done", "that one"), source=TaskSource("issue", 7))
    found = s.wait_for_end(task)
    assert (found.state, found.reason) == ("stuck", "which one?")
    view = s.client.view(SESSION)
    assert (view["holder"], view["queue"]) == (None, [])
    assert s.tasks.wake(SESSION, 8) == [] and s.tasks.wake("octo/other") == []
    s.handler("IC_1", "It is the second one.\n#say thanks")
    assert [t.id for t in s.tasks.wake(SESSION, 7, "a person commented")] == [task.id]
    assert s.wait_for_end(task, states=(TaskState.DONE,)).used.turns == 1
    last = s.prompts()[-1]
    assert "said that you were stuck: which one?. Since then a person commented" in last and "IC_1" in last
    assert s.tasks.wake(SESSION) == []


@pytest.mark.parametrize(
    ("budget", "script", "reason"),
    [
        (TaskBudget(turns=2), line("more"), "2 turns"),
        (TaskBudget(usd=0.05), line("more", cost="0.03"), "0.05 US dollars"),
        (TaskBudget(minutes=1.2 / 60), line("more", tokens="60", pace="10ms"), "0.02 minutes"),
        (TaskBudget(minutes=1.0 / 60), line("more", tokens="6000", pace="10ms"), "0.0166667 minutes"),
    ],
)
def test_a_task_that_used_up_its_budget_ends(scene: Start, budget: TaskBudget, script: str, reason: str) -> None:
    s = scene()
    task = s.add(script, budget=budget)
    found = s.wait_for_end(task)
    assert (found.state, found.reason) == ("stuck", f"its budget of {reason} is used up")
    before = len(s.prompts())
    s.tasks.retry(task.id, "ann")
    again = s.wait_for_end(task)
    assert again.reason == found.reason and again.used_before.turns == found.used.turns
    assert len(s.prompts()) > before, "a retry resets the used budgets"


def test_the_settings_budget_is_the_default(scene: Start) -> None:
    s = scene(env={"TASK_TURNS": "1", "TASK_MINUTES": "3", "TASK_USD": "5"})
    found = s.wait_for_end(s.add(line("more"), budget=TaskBudget(minutes=2)))
    assert (found.budget, found.used.turns) == (TaskBudget(1, 2, 5.0), 1)


def test_failed_turns_are_retried_and_then_the_task_is_stuck(scene: Start) -> None:
    s = scene()
    task = s.add(line("done", fail="API Error: overloaded"))
    found = s.wait_for_end(task)
    assert (found.state, found.failures) == ("stuck", 3)
    assert found.reason == "3 turns in a row failed, the last one: API Error: overloaded"
    keys = [e["key"] for e in s.entries() if e["event"] == "turn-accepted"]
    assert keys == [f"{task.id}:1:{n}" for n in (1, 2, 3)]
    assert ["API Error: overloaded" in p for p in s.prompts()] == [False, True, True]
    assert s.prompts()[2].count("ended with an error") == 2


def test_a_queued_task_can_be_cancelled(scene: Start) -> None:
    s = scene()
    with s.client.lease(SESSION, key="person", lease_ttl=3):
        task = s.add(line("done"))
        eventually(lambda: s.client.view(SESSION)["queue"], 10)
        s.tasks.cancel(task.id, "ann")
        eventually(lambda: not s.client.view(SESSION)["queue"], 5, "the ticket is withdrawn")
    found = s.wait_for_end(task)
    assert (found.state, found.reason) == ("cancelled", "cancelled by ann")
    assert s.prompts() == []


def test_cancelling_a_task_stops_its_turn_at_once(scene: Start) -> None:
    s = scene()
    task = s.add(line("done", tokens="6000", pace="10ms"))
    s.in_turn()
    begun = time.monotonic()
    s.tasks.cancel(task.id)
    closed = eventually(lambda: [e for e in s.entries() if e["event"] == "turn-closed"], 5)
    print(f"cancelled to closed: {(time.monotonic() - begun) * 1000:.0f} ms")
    assert (closed[0]["outcome"], closed[0]["reason"]) == ("cancelled", "withdrawn")
    s.wait_for_end(task, 10)
    eventually(lambda: not s.tasks.has_run(task.id), 5)
    with pytest.raises(TaskRefused):
        s.tasks.cancel(task.id)


def test_a_cancelled_task_can_be_retried(scene: Start) -> None:
    s = scene()
    task = s.add(line("done", "at last", tokens="200", pace="10ms"))
    s.in_turn()
    s.tasks.cancel(task.id)
    # A retry that comes before the run notices the cancel does not interrupt the turn.
    eventually(lambda: any(e["event"] == "turn-closed" for e in s.entries()), 10)
    s.tasks.retry(task.id, "ann")
    found = s.wait_for_end(task, 30, (TaskState.DONE,))
    assert found.turn.key == f"{task.id}:1:2"
    first, again = s.prompts()
    assert "was sent to you before" not in first and "was sent to you before" in again


def test_a_key_has_at_most_one_open_task(scene: Start) -> None:
    s = scene()
    task = s.add(line("done"), key="I_node")
    assert s.add(line("done"), key="I_node").id == task.id
    s.wait_for_end(task)
    second = s.add(line("done"), key="I_node")
    assert (task.id.rpartition("-")[2], second.id.rpartition("-")[2]) == ("1", "2")
    with pytest.raises(TaskRefused, match="newer task"):
        s.tasks.retry(task.id)
    s.wait_for_end(second)
    assert [t.id for t in s.tasks.list(SESSION, TaskState.DONE)] == [task.id, second.id]


def test_an_agent_that_cannot_start_uses_no_turn_of_the_budget(scene: Start) -> None:
    s = scene("exit-start=1")
    task = s.add(line("done"))
    eventually(lambda: "agent cannot run" in (s.tasks.get(task.id).interruptions.last or ""), 30, s.worker.log_text())
    found = s.tasks.get(task.id)
    assert found.state in (TaskState.INTERRUPTED, TaskState.RUNNING)
    assert (found.used.turns, found.failures) == (0, 0)
