"""Identities of guards whose pid may have been reused, and examinations of process trees."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import gevent
import pytest

from sessiond.agent.process.agent_process import AgentProcess
from sessiond.agent.process.guard_registry import GuardId, boot_id, end_guard
from sessiond.agent.process.pipes import SpawnError
from support.agent.fork_chain import CHAIN


@pytest.mark.parametrize("boot", ["this boot", "another"])
def test_a_recorded_guard_whose_pid_now_belongs_to_a_thread_is_gone(boot: str) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert thread.native_id is not None and thread.native_id != os.getpid()
        name = boot_id() if boot == "this boot" else "0" * 8
        assert end_guard(GuardId(thread.native_id, 1, name, 1), 0.1)
    finally:
        over.set()
        thread.join()


STARVED = """
import resource, subprocess, sys
from sessiond.agent.process import guard as guarding
from sessiond.agent.process.guard_registry import GuardId, boot_id, end_guard, guard_alive
one = subprocess.Popen(["sleep", "60"])
known = guarding.process(one.pid)
name = GuardId(known.pid, known.start_time, boot_id(), 1)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
try:
    print("alive" if guard_alive(name) else "gone")
except OSError as error:
    print("cannot be seen")
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
print(one.poll(), end_guard(name, 1), one.wait())
"""


def test_a_guard_does_not_count_as_gone_while_proc_cannot_be_read() -> None:
    """Without a free file descriptor, /proc cannot be read."""
    found = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["cannot be seen", "None True -15"]


def test_every_examination_finds_a_tool_that_forks_forever(tmp_path: Path) -> None:
    lines, ends = list[bytes](), list[int | None]()
    command = ["/bin/sh", "-c", f"{sys.executable} -I -S -c '{CHAIN}' {tmp_path / 'lock'} & exec sleep 60"]
    process = AgentProcess.spawn(command, tmp_path, {}, lines.extend, lambda code, _: ends.append(code))
    with gevent.Timeout(60):
        while lines != [b"forks"]:
            gevent.sleep(0.01)
        seen = [process.strays for _ in range(1000)]
        process.stop()
        while not ends:
            gevent.sleep(0.01)
    assert seen.count(True) == 1000


def test_a_failed_start_leaves_no_file_descriptor_open(tmp_path: Path) -> None:
    def failed(argv: list[str], place: Path) -> None:
        with pytest.raises((SpawnError, ValueError)):
            AgentProcess.spawn(argv, place, {}, print, print)

    def four() -> int:
        failed(["a\0b"], tmp_path)
        failed(["x" * 200_000], tmp_path)
        failed(["/nowhere"], tmp_path)
        failed(["/bin/true"], tmp_path / "nowhere")
        return len(list(Path("/proc/self/fd").iterdir()))

    once = four()  # by now gevent has opened its own
    assert max(four() for _ in range(3)) <= once
