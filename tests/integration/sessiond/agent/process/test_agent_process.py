"""A tool that forks forever. Each of its processes runs for less than a millisecond and ignores SIGTERM."""

import fcntl
import sys
from pathlib import Path

import gevent

from sessiond.agent.process.agent_process import AgentProcess
from support.agent.fork_chain import CHAIN


def test_a_tool_that_forks_forever_ends_with_its_agent(tmp_path: Path) -> None:
    lock, lines, ends = tmp_path / "lock", list[bytes](), list[int | None]()
    command = ["/bin/sh", "-c", f"{sys.executable} -I -S -c '{CHAIN}' {lock} & wait"]
    process = AgentProcess.spawn(command, tmp_path, {}, lines.extend, lambda code, _: ends.append(code))
    with gevent.Timeout(25):
        while lines != [b"forks"]:
            gevent.sleep(0.01)
        process.stop()
        while not ends:
            gevent.sleep(0.01)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError means that the tool still runs
