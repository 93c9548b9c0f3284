"""Results of turns that claude starts by itself reach no caller. The real claude runs without its protection."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from sessiond.verify import verify
from support.servers import Model, Sessiond, claude_env, eventually, scripted_env

SESSION = "octo/hello"


def background(seconds: float) -> str:
    given = {"command": f"sleep {seconds}; echo ended", "run_in_background": True}
    return f"#tool Bash {json.dumps(given)}\n#say begun"


def foreign(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e for e in entries if e["event"] == "foreign"]


def test_the_result_of_a_background_task_that_ends_while_idle_reaches_no_caller(
    sessiond: Callable[..., Sessiond], model: Model
) -> None:
    service = sessiond(claude_env(model, SESSIOND_BACKGROUND_TASKS="1"))
    client = service.client()
    with client.lease(SESSION, kind="worker") as lease:
        assert lease.turn(background(1)).result().text == "begun"
        eventually(lambda: foreign(client.ledger(SESSION)), 15, "claude began a turn by itself")
        assert lease.turn("#say mine").result().text == "mine"
    with client.lease(SESSION) as lease:
        assert lease.turn("#say next").result().text == "next"
    entries = client.ledger(SESSION)
    assert not [e for e in entries if e["event"] == "recovery"]
    assert verify(entries).violations == []


def test_a_background_task_that_ends_as_the_next_prompt_is_sent_does_not_mix_results(
    sessiond: Callable[..., Sessiond], model: Model
) -> None:
    service = sessiond(claude_env(model, SESSIOND_BACKGROUND_TASKS="1"))
    client = service.client()
    for number in range(4):
        with client.lease(SESSION, kind="worker") as lease:
            begun = time.monotonic()
            assert lease.turn(background(0.5)).result().text == "begun"
            time.sleep(max(0.0, 0.5 + number * 0.03 - (time.monotonic() - begun)))  # near the end of the task
            assert lease.turn(f"#say mine {number}").result().text == f"mine {number}"
        with client.lease(SESSION) as lease:
            assert lease.turn(f"#say next {number}").result().text == f"next {number}"
    entries = client.ledger(SESSION)
    assert not [e for e in entries if e["event"] == "recovery"]
    assert verify(entries).violations == []


def test_tasks_are_stopped_before_the_next_grant(sessiond: Callable[..., Sessiond], model: Model) -> None:
    service = sessiond(claude_env(model, SESSIOND_BACKGROUND_TASKS="1"))
    client = service.client()
    with client.lease(SESSION, kind="worker") as lease:
        lease.turn(background(300)).result()
        assert client.view(SESSION)["agent"]["tasks"]
    with client.lease(SESSION) as lease:
        assert client.view(SESSION)["agent"]["tasks"] == []
        assert lease.turn("#say next").result().text == "next"
    entries = client.ledger(SESSION)
    assert [e for e in entries if e["event"] == "drained"]
    assert [e["reason"] for e in entries if e["event"] == "recovery"] == []


@pytest.mark.parametrize("fault", ["foreign-idle=30", "foreign-first"])
def test_own_turns_of_the_scripted_agent_reach_no_caller(sessiond: Callable[..., Sessiond], fault: str) -> None:
    client = sessiond(scripted_env(fault)).client()
    for number in range(5):
        with client.lease(SESSION) as lease:
            assert lease.turn(f"#say mine {number}").result().text == f"mine {number}"
            if fault.startswith("foreign-idle"):
                eventually(lambda number=number: len(foreign(client.ledger(SESSION))) > number)
    assert verify(client.ledger(SESSION)).violations == []
