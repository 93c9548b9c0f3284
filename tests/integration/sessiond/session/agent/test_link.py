"""The link to the agent: lines that the inbox cannot take stay in the pipe."""

import subprocess
from pathlib import Path

import gevent

from sessiond.agent import state as st
from sessiond.agent.process import guard as guarding
from sessiond.agent.process.agent_process import AgentProcess, StartedGuard
from sessiond.agent.process.guard_registry import GuardId, boot_id
from sessiond.agent.process.pipes import READ_SIZE, Pipes
from sessiond.session.agent.items import AgentEvent, AgentItem, AgentLines
from sessiond.session.agent.link import LINE_WEIGHT, UNREAD_LIMIT, AgentLink
from sessiond.session.agent.slots import Slots
from sessiond.settings import Settings
from support.agent.slot_owner import Owner


def test_the_last_lines_of_an_agent_that_has_already_ended_are_read(tmp_path: Path) -> None:
    """These lines may report that its history is lost."""
    ends: list[tuple[int | None, str]] = []
    pipes = Pipes()
    popen = pipes.start(["/bin/sh", "-c", "echo words >&2; exit 3"], tmp_path, {}, None)
    assert popen.wait() == 3
    started = StartedGuard(popen, pipes.identify(popen), pipes, None)
    AgentProcess(started, print, lambda code, words: ends.append((code, words)))
    with gevent.Timeout(60):
        while not ends:
            gevent.sleep(0.01)
    assert ends == [(3, "words\n")]


def test_callers_wait_behind_few_lines_even_if_the_lines_are_short(tmp_path: Path) -> None:
    found: list[AgentItem] = []
    settings = Settings(state_dir=tmp_path, agent_command=("/bin/sh", "-c", "exec yes"))
    link = AgentLink("o/r", settings, Slots(1), Owner(), found.append)
    link.start("c", False)
    with gevent.Timeout(60):
        while link._process is None or not link._process.paused:
            gevent.sleep(0.01)
    lines = sum(len(item.lines) for item in found if isinstance(item, AgentLines))
    assert 0 < lines <= UNREAD_LIMIT // LINE_WEIGHT + READ_SIZE // 2
    link.end()
    with gevent.Timeout(60):
        while not found or not ended(found[-1]):
            while found and not ended(found[-1]):
                link.accepts(found.pop())
                link.resume_reading()
            gevent.sleep(0.01)


def ended(item: AgentItem) -> bool:
    return isinstance(item, AgentEvent) and isinstance(item.event, st.Exited)


def test_the_slot_of_an_ended_agent_is_free_although_nobody_receives_the_event(tmp_path: Path) -> None:
    found: list[AgentItem] = []
    slots, settings = Slots(1), Settings(state_dir=tmp_path, agent_command=("/bin/sh", "-c", "exec cat"))
    link = AgentLink("o/r", settings, slots, Owner(), found.append)
    link.start("c", False)
    with gevent.Timeout(60):
        while not link.alive:
            gevent.sleep(0.01)
        link.disown()
        assert slots.take(Owner())


def test_an_agent_that_gives_up_its_wait_gets_no_slot_although_it_holds_another(tmp_path: Path) -> None:
    slots, owner = Slots(1), Owner()
    assert slots.take(owner)
    second = gevent.spawn(slots.take, owner)
    gevent.sleep(0)
    slots.cancel_wait(owner)
    assert second.get(timeout=60) is False
    slots.give(owner)
    assert slots.take(Owner())


def test_only_the_last_wait_for_predecessors_counts(tmp_path: Path) -> None:
    """The end of an earlier wait does not end the process that runs now."""
    found: list[AgentItem] = []
    settings = Settings(state_dir=tmp_path, agent_command=("/bin/sh", "-c", "exec cat"))
    link = AgentLink("o/r", settings, Slots(1), Owner(), found.append)
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    deaf = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE)
    assert deaf.stdout is not None and deaf.stdout.readline() == b"ready\n"
    known = guarding.process(deaf.pid)
    assert known is not None
    link.await_predecessors([GuardId(deaf.pid, known.start_time, boot_id(), 1)])
    link.disown()
    link.await_predecessors([])
    with gevent.Timeout(60):
        while not found:
            gevent.sleep(0.01)
        assert [link.accepts(item) for item in found] == [True]
        link.start("c", False)
        while len(found) < 3:  # the start, and the first wait's end
            gevent.sleep(0.01)
        kinds = [(type(item.event), link.accepts(item)) for item in found[1:] if isinstance(item, AgentEvent)]
        assert kinds == [(st.Spawned, True), (st.Exited, False)] and link.alive
        link.end()
        while len(found) < 4:
            gevent.sleep(0.01)
    deaf.stdout.close()
    deaf.wait()
