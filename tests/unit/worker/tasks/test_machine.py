"""The table of states, every refusal of it, what is sent next, budgets, frames, the last line. No process at all."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond_worker.runner import judge, ledger_gap, prompts
from sessiond_worker.runner.reply import OUTCOMES, outcome_of
from sessiond_worker.settings import from_env
from sessiond_worker.tasks import machine as tk
from sessiond_worker.tasks.machine import Budget, Refused, Source, State, Task, Turn, Used, decide
from sessiond_worker.tasks.store import checked

AT = "2030-01-02T03:04:05.000Z"
TURN = Turn(1, 1, "task-x-1:1:1")
EVENTS: dict[str, tk.Event] = {
    "start": tk.Start(Budget(20, 120.0)), "queue": tk.Queue("tk-1"), "grant": tk.Grant(7), "send": tk.Send(TURN),
    "close": tk.Close(TURN.key, "completed"), "preempted": tk.Preempted((7,)), "interrupt": tk.Interrupt("a comment"),
    "done": tk.Done("n"), "nothing": tk.Nothing("n"), "stick": tk.Stick("why"), "broke": tk.Broke("why"),
    "fail": tk.Fail("why"), "cancel": tk.Cancel(), "wake": tk.Wake("x"), "retry": tk.Retry(), "released": tk.Released(),
    "job": tk.Job("tasks-1"),
}  # fmt: skip


def a_task(state: State = State.RUNNING, **more: Any) -> Task:
    given = {
        "id": "task-x-1", "key": "k", "session": "octo/hello", "title": "T", "instructions": "Do it.",
        "source": Source("issue", 7, "https://x/7"), "asked_by": "ann", "budget": Budget(20, 120.0), "created_at": AT,
        "updated_at": AT, "state": state, **more,
    }  # fmt: skip
    return Task(**given)


# ---- the table ---------------------------------------------------------------------------------


def test_the_table_names_every_event() -> None:
    assert {name for _, name in tk.TABLE} == set(EVENTS)
    assert {event.name for event in EVENTS.values()} == set(EVENTS)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", EVENTS)
def test_each_pair_is_in_the_table_or_refused_by_name(state: State, name: str) -> None:
    task = a_task(state, turn=TURN if name == "close" else None)
    after = tk.TABLE.get((state, name))
    if after is None:
        with pytest.raises(Refused) as caught:
            decide(task, EVENTS[name], AT)
        assert (caught.value.state, caught.value.event) == (state, name)
        assert state.value in str(caught.value) and name in str(caught.value)
    else:
        assert decide(task, EVENTS[name], AT).state is after


def test_an_end_is_left_by_retry_only_and_takes_no_turn() -> None:
    for end in tk.ENDS:
        assert {name for (state, name) in tk.TABLE if state is end and tk.TABLE[state, name] is not end} == {"retry"}
        assert (end, "send") not in tk.TABLE and (end, "close") not in tk.TABLE


def test_a_second_turn_while_one_is_open_is_refused() -> None:
    open_one = a_task(turn=TURN)
    assert decide(open_one, tk.Send(TURN), AT).turn == TURN, "again under its own key: it never began"
    with pytest.raises(Refused, match="is open"):
        decide(open_one, tk.Send(Turn(1, 2, "task-x-1:1:2")), AT)
    later = a_task(turn=Turn(3, 1, "task-x-1:3:1", open=False))
    with pytest.raises(Refused, match="came before"):
        decide(later, tk.Send(TURN), AT)
    with pytest.raises(Refused, match="is not open"):
        decide(later, tk.Close("task-x-1:3:1", "completed"), AT)


def test_a_preemption_is_counted_once_a_fence() -> None:
    task = a_task()
    for fences in ((7,), (7,), (5, 7), (8, 9), ()):
        task = decide(task, tk.Preempted(fences), AT)
    assert (task.interruptions.preemptions, task.interruptions.last_fence) == (3, 9)


@pytest.mark.parametrize(
    ("last", "missing", "key", "nudge"),
    [
        (None, False, "task-x-1:1:1", False),
        (replace(TURN), False, "task-x-1:1:1", False),
        (replace(TURN, open=False, outcome="completed"), False, "task-x-1:2:1", False),
        (replace(TURN, open=False, outcome="completed"), True, "task-x-1:2:1", True),
        (replace(TURN, open=False, outcome="cancelled"), False, "task-x-1:1:2", False),
        (replace(TURN, open=False, outcome="lost", nudge=True), True, "task-x-1:1:2", True),
        (replace(TURN, open=False, outcome="failed", nudge=True), False, "task-x-1:2:1", False),
    ],
)
def test_the_next_turn(last: Turn | None, missing: bool, key: str, nudge: bool) -> None:
    turn = tk.next_turn(a_task(turn=last, missing=missing))
    assert (turn.key, turn.nudge) == (key, nudge)


def test_budgets() -> None:
    task = a_task(budget=Budget(2, 1.0, 0.5))
    assert tk.used_up(task) is None
    assert "2 turns" in str(tk.used_up(replace(task, used=Used(turns=2))))
    assert "1 minutes" in str(tk.used_up(replace(task, used=Used(seconds=60))))
    assert "0.5 US" in str(tk.used_up(replace(task, used=Used(usd=0.5))))
    assert tk.used_up(a_task(budget=Budget(2, 1.0), used=Used(usd=1e6))) is None
    assert Budget(turns=3).filled(Budget(20, 5.0, 1.0)) == Budget(3, 5.0, 1.0)


def test_what_counts_as_used() -> None:
    task = a_task(turn=TURN)
    for outcome, turns in (("completed", 1), ("failed", 1), ("cancelled", 0), ("lost", 0)):
        after = decide(task, tk.Close(TURN.key, outcome, seconds=2.0, usd=0.1), AT)
        assert after.used == Used(turns, 2.0, 0.1)
    nudge = a_task(turn=replace(TURN, nudge=True))
    assert decide(nudge, tk.Close(TURN.key, "completed"), AT).used.turns == 0


def test_the_record_comes_back_as_it_was() -> None:
    task = a_task(turn=TURN, notices=("a", "b"), ticket="tk-1", used=Used(1, 2.0, 0.3))
    assert tk.loads(tk.dumps(task)) == task
    newer = {**json.loads(tk.dumps(task)), "not_known_yet": 1}
    assert tk.loads(json.dumps(newer)) == task
    assert all(f.name in json.loads(tk.dumps(task)) for f in fields(Task))


@pytest.mark.parametrize(
    "change",
    [
        {"session": "noslash"}, {"session": "a/.."}, {"key": ""}, {"title": " "}, {"instructions": "x" * 200_000},
        {"budget": Budget(turns=0)}, {"budget": Budget(usd=-1.0)}, {"title": "a\x00b"},
    ],
)  # fmt: skip
def test_what_no_task_can_be_made_of(change: dict[str, Any]) -> None:
    new = tk.New("k", "Octo/Hello", "T", "Do it.")
    assert checked(new).session == "octo/hello"
    with pytest.raises(ValueError, match=r".") as caught:
        checked(replace(new, **change))
    assert "\n" not in str(caught.value)


# ---- the last line -----------------------------------------------------------------------------


@given(st.text(), st.sampled_from(OUTCOMES), st.text(max_size=50), st.sampled_from(["", "\n", " \n\n"]))
def test_the_last_line_is_found_behind_any_text(text: str, outcome: str, said: str, tail: str) -> None:
    found = outcome_of(f"{text}\n{json.dumps({'outcome': outcome, 'note': said})}{tail}")
    assert found is not None and (found.outcome, found.note) == (outcome, said.strip())


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    found = outcome_of(text)
    assert found is None or found.outcome in OUTCOMES


@pytest.mark.parametrize(
    "text",
    [
        "", "done", '{"outcome": "finished"}', '{"outcome": "done"} and more', '["done"]', "{", '{"outcome": "done"',
        '{"outcome": "done", "note": 3}', '{"outcome": ["done"]}', '{"outcome": "done", "note": ""}\n```',
        '{"outcome": "done"}\nsomething else', "null", '"done"',
    ],
)  # fmt: skip
def test_what_is_no_outcome(text: str) -> None:
    assert outcome_of(text) is None


# ---- what a turn's end makes of its task ---------------------------------------------------------


def names(events: tuple[tk.Event, ...]) -> list[str]:
    return [event.name for event in events]


@pytest.mark.parametrize(
    ("ended", "nudge", "expected"),
    [
        (judge.Ended("completed", '{"outcome": "done"}'), False, ["close", "done"]),
        (judge.Ended("completed", '{"outcome": "more"}'), False, ["close"]),
        (judge.Ended("completed", '{"outcome": "nothing-to-do"}'), False, ["close", "nothing"]),
        (judge.Ended("completed", '{"outcome": "stuck"}'), False, ["close", "stick"]),
        (judge.Ended("completed", "no line"), False, ["close"]),
        (judge.Ended("completed", "no line"), True, ["close", "stick"]),
        (judge.Ended("cancelled", reason="preempted"), False, ["close"]),
        (judge.Ended("lost", reason="agent ended"), False, ["close"]),
        (judge.Ended("failed", reason="API Error"), False, ["close"]),
    ],
)
def test_judged(ended: judge.Ended, nudge: bool, expected: list[str]) -> None:
    turn = replace(TURN, nudge=nudge)
    assert names(judge.judge(a_task(turn=turn), turn, ended, 3)) == expected


def test_the_third_failure_in_a_row_is_stuck_and_a_success_between_begins_anew() -> None:
    failed = judge.Ended("failed", reason="API Error")
    assert names(judge.judge(a_task(turn=TURN, failures=2), TURN, failed, 3)) == ["close", "stick"]
    assert decide(a_task(turn=TURN, failures=2), tk.Close(TURN.key, "completed"), AT).failures == 0
    assert decide(a_task(turn=TURN, failures=2), tk.Close(TURN.key, "cancelled"), AT).failures == 2


def test_a_failure_before_the_agent_began_is_none_of_the_tasks() -> None:
    task = a_task(turn=TURN, failures=2)
    (close,) = judge.judge(task, TURN, judge.Ended("failed", reason="agent exited with 1", began=False), 3)
    after = decide(task, close, AT)
    assert (after.used.turns, after.failures, after.turn and after.turn.outcome) == (0, 2, "lost")


def test_a_turn_as_sessiond_stored_it() -> None:
    stored = {
        "outcome": "completed", "text": "x", "accepted_at": "2030-01-01T00:00:00.000Z",
        "closed_at": "2030-01-01T00:01:30.500Z", "cost_usd": 0.25,
        "started_at": "2030-01-01T00:00:01.000Z",
    }  # fmt: skip
    assert judge.ended_of(stored) == judge.Ended("completed", "x", None, 90.5, 0.25)


def test_what_the_ledger_says_of_the_time_between() -> None:
    def entry(event: str, **data: Any) -> dict[str, Any]:
        return {"id": f"{len(entries)}-0", "event": event, **data}

    entries: list[dict[str, Any]] = []
    for event, data in (
        ("taken", {"ticket": "tk-a", "key": "IC_a"}),
        ("ended", {"ticket": "tk-w", "fence": 9, "reason": "preempted"}),
        ("granted", {"ticket": "tk-a", "kind": "handler"}),
        ("ended", {"ticket": "tk-a", "fence": 10, "reason": "released"}),
        ("granted", {"ticket": "tk-old", "kind": "handler"}), ("granted", {"ticket": "tk-a", "kind": "handler"}),
        ("ended", {"ticket": "tk-other", "fence": 12, "reason": "preempted"}),
        ("granted", {"ticket": "tk-w", "kind": "worker"}),
    ):  # fmt: skip
        entries.append(entry(event, **data))
    found = ledger_gap.read(entries, "task-x-1", "tk-w")
    assert found == ledger_gap.Meanwhile((9,), ("IC_a", "tk-old"), "7-0")


# ---- frames ------------------------------------------------------------------------------------


def test_every_prompt_has_its_frame() -> None:
    task = a_task(instructions="Add a test.")
    text = prompts.prompt(task, TURN)
    for part in ("background worker of octo/hello", "turn 1 of task task-x-1.", "do not continue them", "Add a test.",
                 "asked for by ann (issue, https://x/7)", "Begin with it now", prompts.ENDING):  # fmt: skip
        assert part in text
    assert outcome_of(text) is None, "its own example is in the middle of it"


def test_what_happened_is_told_until_a_turn_is_completed() -> None:
    task = a_task(turn=TURN)
    cut = decide(task, tk.Close(TURN.key, "cancelled", notice=prompts.cut_notice(TURN, "cancelled", "a comment")), AT)
    told = prompts.prompt(cut, tk.next_turn(cut))
    assert "Turn 1 (attempt 1) was sent to you before" in told and "attempt 2 of task" in told
    again = decide(decide(cut, tk.Send(tk.next_turn(cut)), AT), tk.Close("task-x-1:1:2", "completed"), AT)
    assert again.notices == ()


@given(st.text(alphabet="-ab \n\t"))
def test_a_strangers_text_never_ends_its_fence(text: str) -> None:
    lines = prompts.fenced(text, "task").splitlines()
    fence = lines[0].split(" ")[0]
    assert set(fence) == {"-"} and lines[-1] == f"{fence} task ends"
    assert not [line for line in text.splitlines() if line.strip().startswith(fence)]


@given(st.text(), st.text())
def test_a_title_stays_inside_the_fence_and_a_name_on_its_line(title: str, name: str) -> None:
    text = prompts.prompt(a_task(title=title or "x", asked_by=name), TURN)
    plain = prompts.prompt(a_task(title="x", asked_by="x"), TURN)
    assert len(text.splitlines()) == len(plain.splitlines())


def test_a_nudge_repeats_no_task() -> None:
    text = prompts.prompt(a_task(missing=True), Turn(2, 1, "k", nudge=True))
    assert "Do it." not in text and prompts.NUDGE in text and prompts.ENDING in text


def test_who_interrupted() -> None:
    many = prompts.meanwhile_notice([f"IC_{n}" for n in range(12)], cut=True)
    assert "12 handlers" in many and "IC_9, ..." in many and "IC_11" not in many
    assert "IC_1)" in prompts.meanwhile_notice(["IC_1"], cut=False)
    assert "gone before it was answered" in prompts.meanwhile_notice([], cut=True)
    assert "\n" not in prompts.meanwhile_notice(["a\nb"], cut=True)


# ---- settings ----------------------------------------------------------------------------------


def test_settings() -> None:
    found = from_env({"SESSIOND_KEY": "k", "TASK_USD": "2.5"})
    assert (found.budget, found.sweep_seconds, found.claim_ttl) == (Budget(20, 120.0, 2.5), 30.0, 15.0)
