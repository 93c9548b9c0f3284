"""Prompts: their parts, and fences that no quoted text can end."""

from hypothesis import given
from hypothesis import strategies as st

from sessiond_worker.runner import prompts
from sessiond_worker.runner.reply import outcome_of
from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks.machine import decide
from sessiond_worker.tasks.model import TaskTurn, next_turn
from support.worker.task_records import AT, TURN, make_task


def test_every_prompt_has_all_its_parts() -> None:
    task = make_task(instructions="Add a test.")
    text = prompts.prompt(task, TURN)
    for part in ("background worker of octo/hello", "turn 1 of task task-x-1.", "do not continue them", "Add a test.",
                 "asked for by ann (issue, https://x/7)", "Begin with it now", prompts.ENDING):  # fmt: skip
        assert part in text
    assert outcome_of(text) is None, "the example in the prompt must not count as an outcome line"


def test_a_prompt_reports_interruptions_until_a_turn_is_completed() -> None:
    task = make_task(turn=TURN)
    cut = decide(task, ev.Close(TURN.key, "cancelled", notice=prompts.cut_notice(TURN, "cancelled", "a comment")), AT)
    text = prompts.prompt(cut, next_turn(cut))
    assert "Turn 1 (attempt 1) was sent to you before" in text and "attempt 2 of task" in text
    again = decide(decide(cut, ev.Send(next_turn(cut)), AT), ev.Close("task-x-1:1:2", "completed"), AT)
    assert again.notices == ()


@given(st.text(alphabet="-ab \n\t"))
def test_quoted_text_never_ends_its_fence(text: str) -> None:
    lines = prompts.delimited(text, "task").splitlines()
    fence = lines[0].split(" ")[0]
    assert set(fence) == {"-"} and lines[-1] == f"{fence} task ends"
    assert not [line for line in text.splitlines() if line.strip().startswith(fence)]


@given(st.text(), st.text())
def test_a_title_stays_inside_the_fence_and_a_name_on_its_line(title: str, name: str) -> None:
    text = prompts.prompt(make_task(title=title or "x", asked_by=name), TURN)
    plain = prompts.prompt(make_task(title="x", asked_by="x"), TURN)
    assert len(text.splitlines()) == len(plain.splitlines())


def test_a_nudge_does_not_repeat_the_task() -> None:
    text = prompts.prompt(make_task(missing=True), TaskTurn(2, 1, "k", nudge=True))
    assert "Do it." not in text and prompts.NUDGE in text and prompts.ENDING in text


def test_a_notice_names_the_handlers_that_interrupted() -> None:
    many = prompts.gap_notice([f"IC_{n}" for n in range(12)], preempted=True)
    assert "12 handlers" in many and "IC_9, ..." in many and "IC_11" not in many
    assert "IC_1)" in prompts.gap_notice(["IC_1"], preempted=False)
    assert "gone before it was answered" in prompts.gap_notice([], preempted=True)
    assert "\n" not in prompts.gap_notice(["a\nb"], preempted=True)
