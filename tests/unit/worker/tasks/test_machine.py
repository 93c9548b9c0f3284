"""The state machine of a task: every pair of state and event, and the changes of each event."""

from dataclasses import replace

import pytest

from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks.machine import TABLE, TaskRefused, decide
from sessiond_worker.tasks.model import ENDS, TaskBudget, TaskState, TaskTurn, TaskUsage
from support.worker.task_records import AT, TURN, make_task

EVENTS: dict[str, ev.Event] = {
    "start": ev.Start(TaskBudget(20, 120.0)), "queue": ev.Queue("tk-1"), "grant": ev.Grant(7), "send": ev.Send(TURN),
    "close": ev.Close(TURN.key, "completed"), "preempted": ev.Preempted((7,)), "interrupt": ev.Interrupt("a comment"),
    "done": ev.Done("n"), "nothing": ev.Nothing("n"), "stick": ev.Stick("why"), "broke": ev.Broke("why"),
    "fail": ev.Fail("why"), "cancel": ev.Cancel(), "wake": ev.Wake("x"), "retry": ev.Retry(), "released": ev.Released(),
    "job": ev.Job("tasks-1"),
}  # fmt: skip


def test_the_table_names_every_event() -> None:
    assert {name for _, name in TABLE} == set(EVENTS)
    assert {event.name for event in EVENTS.values()} == set(EVENTS)


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("name", EVENTS)
def test_each_pair_of_state_and_event_is_in_the_table_or_refused_with_its_name(state: TaskState, name: str) -> None:
    task = make_task(state, turn=TURN if name == "close" else None)
    after = TABLE.get((state, name))
    if after is None:
        with pytest.raises(TaskRefused) as caught:
            decide(task, EVENTS[name], AT)
        assert (caught.value.state, caught.value.event) == (state, name)
        assert state.value in str(caught.value) and name in str(caught.value)
    else:
        assert decide(task, EVENTS[name], AT).state is after


def test_only_retry_leaves_an_end_state_and_it_takes_no_turn() -> None:
    for end in ENDS:
        assert {name for (state, name) in TABLE if state is end and TABLE[state, name] is not end} == {"retry"}
        assert (end, "send") not in TABLE and (end, "close") not in TABLE


def test_a_second_turn_while_one_is_open_is_refused() -> None:
    open_one = make_task(turn=TURN)
    assert decide(open_one, ev.Send(TURN), AT).turn == TURN, (
        "the same turn may be sent again under its key, because it never began"
    )
    with pytest.raises(TaskRefused, match="is open"):
        decide(open_one, ev.Send(TaskTurn(1, 2, "task-x-1:1:2")), AT)
    later = make_task(turn=TaskTurn(3, 1, "task-x-1:3:1", open=False))
    with pytest.raises(TaskRefused, match="came before"):
        decide(later, ev.Send(TURN), AT)
    with pytest.raises(TaskRefused, match="is not open"):
        decide(later, ev.Close("task-x-1:3:1", "completed"), AT)


def test_a_preemption_is_counted_once_for_each_fence() -> None:
    task = make_task()
    for fences in ((7,), (7,), (5, 7), (8, 9), ()):
        task = decide(task, ev.Preempted(fences), AT)
    assert (task.interruptions.preemptions, task.interruptions.last_fence) == (3, 9)


def test_a_turn_is_added_to_the_used_budget() -> None:
    task = make_task(turn=TURN)
    for outcome, turns in (("completed", 1), ("failed", 1), ("cancelled", 0), ("lost", 0)):
        after = decide(task, ev.Close(TURN.key, outcome, seconds=2.0, usd=0.1), AT)
        assert after.used == TaskUsage(turns, 2.0, 0.1)
    nudge = make_task(turn=replace(TURN, nudge=True))
    assert decide(nudge, ev.Close(TURN.key, "completed"), AT).used.turns == 0
