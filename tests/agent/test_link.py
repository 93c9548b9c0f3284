"""The owner loop's line to its agent: what is not taken out of the inbox stays in the pipe."""

from pathlib import Path

import gevent

from sessiond.agent import state as st
from sessiond.agent.process import READ_SIZE
from sessiond.agentlink import LINE_WEIGHT, UNREAD_LIMIT, AgentLink, FromAgent
from sessiond.settings import Settings
from sessiond.slots import Slots


class Owner:
    """Never sleeps."""

    def may_sleep(self) -> float | None:
        return None

    def sleep_now(self) -> None:
        raise AssertionError("nobody asked")


def test_callers_stand_behind_few_lines_however_short_they_are(tmp_path: Path) -> None:
    found: list[FromAgent] = []
    settings = Settings(state_dir=tmp_path, agent_command=("/bin/sh", "-c", "exec yes"))
    link = AgentLink("o/r", settings, Slots(1), Owner(), found.append)
    link.start("c", False)
    with gevent.Timeout(60):
        while link._process is None or link._process._flowing.is_set():
            gevent.sleep(0.01)
    lines = sum(len(item.lines or ()) for item in found)
    assert 0 < lines <= UNREAD_LIMIT // LINE_WEIGHT + READ_SIZE // 2
    link.end()
    with gevent.Timeout(60):
        while not found or not isinstance(found[-1].event, st.Exited):
            while found and not isinstance(found[-1].event, st.Exited):
                link.accepts(found.pop())
                link.flow()
            gevent.sleep(0.01)
