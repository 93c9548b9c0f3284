"""The real claude's tools leave processes behind in every way, and none outlives its agent or its lease."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from servers import Model, Sessiond, claude_env
from stand import Stand
from strays import WAYS

Start = Callable[..., Sessiond]
Row = Callable[..., None]


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
        left = stand.next_turn()
        kept = not stand.events("agent-reaped")
        why = "kept" if kept else stand.check()
        matrix("trees", end=f"claude: background task, forced, {name}", why=why, children=len(ways), left=left or 0)
        assert kept == (ways == ("foreground",)) and (kept or why == "strays")
        assert [left for left in stand.left() if "claude" not in left and "python" not in left] == []
