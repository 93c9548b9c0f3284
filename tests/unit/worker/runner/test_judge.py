"""The end of a turn and its effect on the task."""

from dataclasses import replace

import pytest

from sessiond_worker.runner import judge
from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks.machine import decide
from support.worker.task_records import AT, TURN, make_task


def names(events: tuple[ev.Event, ...]) -> list[str]:
    return [event.name for event in events]


@pytest.mark.parametrize(
    ("ended", "nudge", "expected"),
    [
        (judge.ClosedTurn("completed", '{"outcome": "done"}'), False, ["close", "done"]),
        (judge.ClosedTurn("completed", '{"outcome": "more"}'), False, ["close"]),
        (judge.ClosedTurn("completed", '{"outcome": "nothing-to-do"}'), False, ["close", "nothing"]),
        (judge.ClosedTurn("completed", '{"outcome": "stuck"}'), False, ["close", "stick"]),
        (judge.ClosedTurn("completed", "no line"), False, ["close"]),
        (judge.ClosedTurn("completed", "no line"), True, ["close", "stick"]),
        (judge.ClosedTurn("cancelled", reason="preempted"), False, ["close"]),
        (judge.ClosedTurn("lost", reason="agent ended"), False, ["close"]),
        (judge.ClosedTurn("failed", reason="API Error"), False, ["close"]),
    ],
)
def test_the_end_of_a_turn_gives_its_events(ended: judge.ClosedTurn, nudge: bool, expected: list[str]) -> None:
    turn = replace(TURN, nudge=nudge)
    assert names(judge.judge(make_task(turn=turn), turn, ended, 3)) == expected


def test_the_third_failure_in_a_row_is_stuck_and_a_success_resets_the_count() -> None:
    failed = judge.ClosedTurn("failed", reason="API Error")
    assert names(judge.judge(make_task(turn=TURN, failures=2), TURN, failed, 3)) == ["close", "stick"]
    assert decide(make_task(turn=TURN, failures=2), ev.Close(TURN.key, "completed"), AT).failures == 0
    assert decide(make_task(turn=TURN, failures=2), ev.Close(TURN.key, "cancelled"), AT).failures == 2


def test_a_failure_before_the_agent_began_does_not_count_for_the_task() -> None:
    task = make_task(turn=TURN, failures=2)
    (close,) = judge.judge(task, TURN, judge.ClosedTurn("failed", reason="agent exited with 1", began=False), 3)
    after = decide(task, close, AT)
    assert (after.used.turns, after.failures, after.turn and after.turn.outcome) == (0, 2, "lost")


def test_a_turn_is_read_as_sessiond_stored_it() -> None:
    stored = {
        "outcome": "completed", "text": "x", "accepted_at": "2030-01-01T00:00:00.000Z",
        "closed_at": "2030-01-01T00:01:30.500Z", "cost_usd": 0.25,
        "started_at": "2030-01-01T00:00:01.000Z",
    }  # fmt: skip
    assert judge.closed_turn(stored) == judge.ClosedTurn("completed", "x", None, 90.5, 0.25)
