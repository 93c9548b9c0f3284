"""Reports of committed steps: the logged entries and their fields."""

import pytest
import structlog

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock.rules import Kind
from sessiond.lock.state import Lock
from sessiond.metrics import REGISTRY
from sessiond.session.pipeline.plan import compose
from sessiond.session.pipeline.step import Step
from sessiond.session.pipeline.step_reports import LOGGED, StepLog, StepMetrics


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_handoff_is_counted_by_the_kind_of_the_previous_holder() -> None:
    steps, lock, agent = StepMetrics(), Lock(), st.Agent("c")
    before = counted("sessiond_handoffs_total", from_kind="handler", to_kind="worker")
    events: list[ev.Event] = [
        ev.Take("a", Kind.HANDLER, 5), ev.Wait("a", "one"), ev.Take("w", Kind.WORKER, 30), ev.Wait("w", "two"),
    ]  # fmt: skip
    for event in events:
        plan = compose(lock, agent, [event])
        steps.count(Step(plan))
        lock, agent = plan.lock, plan.agent
    assert lock.lease is not None
    assert steps.oldest_waits(lock)[Kind.WORKER] > 0 == steps.oldest_waits(lock)[Kind.HANDLER]
    steps.count(Step(compose(lock, agent, [ev.Release(lock.lease.fence)])))
    assert counted("sessiond_handoffs_total", from_kind="handler", to_kind="worker") == before + 1


def test_a_long_wait_is_reported_again_only_after_the_same_time() -> None:
    steps = StepMetrics()
    plan = compose(Lock(), st.Agent("c"), [ev.Take("a", Kind.HANDLER, 5), ev.Take("b", Kind.HANDLER, 5)])
    waits = compose(plan.lock, plan.agent, [ev.Wait("b", "two")])
    steps.count(Step(waits))
    assert steps.long_waits(waits.lock, 60.0) == []
    assert [ticket for ticket, _ in steps.long_waits(waits.lock, 0.0)] == ["b"]
    assert steps.long_waits(waits.lock, 60.0) == []


@pytest.mark.parametrize("event", LOGGED)
def test_a_logged_event_shows_its_fields_and_no_text_of_people_or_agents(event: str) -> None:
    data = dict.fromkeys((*LOGGED[event], "prompt", "text", "why-not"), "x")
    plan = compose(Lock(), st.Agent("c"), [])
    plan.ledger.append((event, {**data, "ticket": "tk-1", "fence": 3}))
    with structlog.testing.capture_logs() as lines:
        StepLog("o/r").write(plan)
    (line,) = lines
    assert line == {
        "event": event, "log_level": "info", "session": "o/r", "ticket": "tk-1", "fence": 3,
        **dict.fromkeys(LOGGED[event], "x"),
    }  # fmt: skip
