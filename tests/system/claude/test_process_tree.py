"""The real claude's tools leave processes behind in every way, and none outlives its agent or its lease."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.agent.agent_tree import Stand
from support.agent.strays import WAYS
from support.servers import Model, Sessiond, claude_env, eventually
from support.size import FULL

Start = Callable[..., Sessiond]
Row = Callable[..., None]
full = pytest.mark.skipif(not FULL, reason="of the full form")


def bash(command: str) -> str:
    return f"#tool Bash {json.dumps({'command': command})}"


def in_background(command: str) -> str:
    return f"#tool Bash {json.dumps({'command': command, 'run_in_background': True})}"


def preempted(stand: Stand) -> None:
    """The next handler's ticket is what ends it: no claude drains within a millisecond."""


def forced(stand: Stand) -> None:
    stand.client.force_release(stand.session, stand.fence, "the test's")


ENDS = {
    "preempted, drain deadline": (preempted, "drain-deadline"),
    "forced, drain deadline": (forced, "drain-deadline"),
    "kill -9 of the agent": (Stand.kill_agent, "died"),
    "kill -9 of the guard": (Stand.kill_guard, "died"),
}


@full
def test_the_tree_of_the_real_agent_is_gone_before_the_next_one(sessiond: Start, model: Model, matrix: Row) -> None:
    service = sessiond(claude_env(model, SESSIOND_DRAIN_DEADLINE="0.001"))

    def run(name: str) -> tuple[str, Stand, list[str]]:
        end, _ = ENDS[name]
        ways = [way for way in WAYS if way != "bare" or end != Stand.kill_guard]
        stand = Stand(service, f"octo/{list(ENDS).index(name)}", bash, ways)
        end(stand)
        return name, stand, stand.next_turn()

    with ThreadPoolExecutor(len(ENDS)) as pool:
        for name, stand, left in pool.map(run, ENDS):
            why = stand.check()
            row = {"why": why, "children": len(stand.strays.ways), "left": ", ".join(left) or 0}
            matrix("trees", end=f"claude: {name}", **row)
            assert (left, why) == ([], ENDS[name][1]), name


def test_an_agent_that_is_kept_is_alone(sessiond: Start, model: Model, matrix: Row) -> None:
    """A drain ends the tool that claude runs and its background tasks; what those left behind ends with the process."""
    service = sessiond(claude_env(model, SESSIOND_BACKGROUND_TASKS="1"))
    rows = [("one way", in_background, ("foreground",)), ("every way", in_background, tuple(WAYS))]
    for name, tool, ways in rows:
        stand = Stand(service, f"octo/{name.replace(' ', '-')}", tool, ways)
        stand.until_turn_over()
        forced(stand)
        left = [one for one in stand.next_turn() if one in WAYS]
        why = stand.check()
        matrix("trees", end=f"claude: background task, forced, {name}", why=why, children=len(ways), left=left or 0)
        assert (left, why) == ([], "kept" if ways == ("foreground",) else "strays")


@full
@pytest.mark.parametrize("end", ["SIGTERM", "kill -9 of master and worker"])
def test_the_tree_of_the_real_agent_ends_with_its_owner(sessiond: Start, model: Model, matrix: Row, end: str) -> None:
    service = sessiond(claude_env(model))
    stand = Stand(service, "octo/hello", bash)
    if end == "SIGTERM":
        service.terminate()
        assert stand.left() == []
    else:
        service.kill9()
        eventually(lambda: not stand.left(), 10, lambda: f"the guard ends its tree: {stand.left()}")
    service.start()
    left, why = stand.next_turn(), stand.check()
    matrix("trees", end=f"claude: {end}", why=why, children=len(WAYS), left=", ".join(left) or 0)
    assert left == []
