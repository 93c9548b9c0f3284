"""Tools of the real claude leave processes behind in many ways. None outlives its agent or its lease."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.agent.agent_tree import TreeScene
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


def preempted(scene: TreeScene) -> None:
    """Do nothing: the next handler's ticket ends the turn. claude cannot drain within a millisecond."""


def forced(scene: TreeScene) -> None:
    scene.client.force_release(scene.session, scene.fence, "the test's")


ENDS = {
    "preempted, drain deadline": (preempted, "drain-deadline"),
    "forced, drain deadline": (forced, "drain-deadline"),
    "kill -9 of the agent": (TreeScene.kill_agent, "died"),
    "kill -9 of the guard": (TreeScene.kill_guard, "died"),
}


@full
def test_the_tree_of_the_real_agent_is_gone_before_the_next_one(sessiond: Start, model: Model, matrix: Row) -> None:
    service = sessiond(claude_env(model, SESSIOND_DRAIN_DEADLINE="0.001"))

    def run(name: str) -> tuple[str, TreeScene, list[str]]:
        end, _ = ENDS[name]
        ways = [way for way in WAYS if way != "bare" or end != TreeScene.kill_guard]
        scene = TreeScene(service, f"octo/{list(ENDS).index(name)}", bash, ways)
        end(scene)
        return name, scene, scene.next_turn()

    with ThreadPoolExecutor(len(ENDS)) as pool:
        for name, scene, left in pool.map(run, ENDS):
            why = scene.check()
            row = {"why": why, "children": len(scene.strays.ways), "left": ", ".join(left) or 0}
            matrix("trees", end=f"claude: {name}", **row)
            assert (left, why) == ([], ENDS[name][1]), name


def test_an_agent_that_stays_awake_has_no_strays(sessiond: Start, model: Model, matrix: Row) -> None:
    """A drain ends claude's running tool and its background tasks. Processes that these left end with the agent."""
    service = sessiond(claude_env(model, SESSIOND_BACKGROUND_TASKS="1"))
    rows = [("one way", in_background, ("foreground",)), ("every way", in_background, tuple(WAYS))]
    for name, tool, ways in rows:
        scene = TreeScene(service, f"octo/{name.replace(' ', '-')}", tool, ways)
        scene.until_turn_over()
        forced(scene)
        left = [one for one in scene.next_turn() if one in WAYS]
        why = scene.check()
        matrix("trees", end=f"claude: background task, forced, {name}", why=why, children=len(ways), left=left or 0)
        assert (left, why) == ([], "kept" if ways == ("foreground",) else "strays")


@full
@pytest.mark.parametrize("end", ["SIGTERM", "kill -9 of master and worker"])
def test_the_tree_of_the_real_agent_ends_with_its_owner(sessiond: Start, model: Model, matrix: Row, end: str) -> None:
    service = sessiond(claude_env(model))
    scene = TreeScene(service, "octo/hello", bash)
    if end == "SIGTERM":
        service.terminate()
        assert scene.left() == []
    else:
        service.kill9()
        eventually(lambda: not scene.left(), 10, lambda: f"the guard ends its tree: {scene.left()}")
    service.start()
    left, why = scene.next_turn(), scene.check()
    matrix("trees", end=f"claude: {end}", why=why, children=len(WAYS), left=", ".join(left) or 0)
    assert left == []
