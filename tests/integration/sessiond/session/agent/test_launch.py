"""The agent starts with any CLAUDE.md in the checkout."""

import os
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from sessiond.agent import state as st
from sessiond.session.agent.items import AgentEvent, AgentItem
from sessiond.session.agent.launch import CLAUDE_MD_LIMIT, guide
from sessiond.session.agent.link import AgentLink
from sessiond.session.agent.slots import Slots
from sessiond.settings import Settings
from support.agent.slot_owner import Owner


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"begins")
        file.truncate(2**40)


GUIDES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "text": (lambda p: p.write_text("say kumquat\n"), "say kumquat\n"),
    "empty": (lambda p: p.touch(), ""),
    "UTF-16": (lambda p: p.write_text("say kumquat", encoding="utf-16"), "say kumquat"),
    "NUL": (lambda p: p.write_bytes(b"a\0b"), "ab"),
    "no UTF-8": (lambda p: p.write_bytes(b"a\xff\xfe" * CLAUDE_MD_LIMIT), "a" * (CLAUDE_MD_LIMIT // 3 + 1)),
    "three bytes a character": (lambda p: p.write_text("\u6f22" * 100_000), "\u6f22" * (CLAUDE_MD_LIMIT // 3)),
    "a TB of nothing": (sparse, "begins"),
    "a link": (lambda p: p.symlink_to("/etc/hostname"), None),
    "a directory": (lambda p: p.mkdir(), None),
    "a pipe": (os.mkfifo, None),
    "none": (lambda p: None, None),
}


@pytest.mark.parametrize("name", GUIDES)
def test_the_agent_starts_with_the_part_of_the_guide_that_can_be_read(tmp_path: Path, name: str) -> None:
    make, text = GUIDES[name]
    place = tmp_path / "work" / "o" / "r"
    place.mkdir(parents=True)
    make(place / "CLAUDE.md")
    assert guide(place / "CLAUDE.md", None) == text
    found: list[AgentItem] = []
    settings = Settings(state_dir=tmp_path, agent_command=("/bin/sh", "-c", "exec cat"))
    link = AgentLink("o/r", settings, Slots(1), Owner(), found.append)
    link.start("c", False)
    with gevent.Timeout(60):
        while not found:
            gevent.sleep(0.01)
        assert found[0] == AgentEvent(1, st.Spawned()), found
        link.end()
        while len(found) < 2:
            gevent.sleep(0.01)


def test_a_guide_that_may_not_be_read_is_ignored(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may")
    file = tmp_path / "CLAUDE.md"
    file.touch(mode=0)
    assert guide(file, None) is None
