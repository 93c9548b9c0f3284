"""Agents start, exit and are examined correctly while many file descriptors are open or none is free."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil

from sessiond.client import Client
from support.servers import Sessiond, eventually, scripted_env

SESSION = "octo/hello"
MANY = 1100
"""More than select() accepts."""
Start = Callable[..., Sessiond]


def worker_of(service: Sessiond) -> psutil.Process:
    (worker,) = psutil.Process(service.pid).children()
    return worker


@contextmanager
def no_free_descriptors(process: psutil.Process) -> Iterator[None]:
    """Make it impossible for the process to open further file descriptors."""
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (4, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


def says(client: Client, prompt: str) -> tuple[str, str]:
    with client.lease(SESSION, timeout=60) as lease:
        result = lease.turn(prompt).result()
    return result.outcome, result.text


def test_an_agent_starts_while_many_connections_are_open(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    with ExitStack() as held:
        for _ in range(MANY):
            one = held.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: worker_of(service).num_fds() > MANY, 30)
        assert says(service.client(), "#say one") == ("completed", "one")


def test_an_agents_exit_is_handled_after_file_descriptors_are_free_again(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    assert says(client, "#say one") == ("completed", "one")
    (started,) = [e["guard"] for e in client.ledger(SESSION) if e["event"] == "agent-started"]
    guard = psutil.Process(started["pid"])
    with no_free_descriptors(worker_of(service)):
        os.kill(started["agent_pid"], signal.SIGKILL)
        # The guard is a child of the worker. Once it is reaped, the worker searches for its remaining processes.
        eventually(lambda: not guard.is_running(), 30)
        time.sleep(0.2)
    assert says(client, "#say two") == ("completed", "two")


def test_a_turn_completes_although_its_process_tree_could_not_be_read(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client, mark = service.client(), service.state / "work" / SESSION / "fenced.mark"
    with client.lease(SESSION) as lease:
        assert lease.turn("#say one").result().completed
        turn = lease.turn("#at completed sleep=500\n#at fenced sleep=1\n#say two")
        eventually(lambda: client.turn(SESSION, turn.id)["state"] == "started")
        with no_free_descriptors(worker_of(service)):
            eventually(mark.exists, 30)
            time.sleep(0.5)
        result = turn.result()
    assert (result.outcome, result.text) == ("completed", "two")
    assert not [e for e in client.ledger(SESSION) if e["event"] in ("refused", "recovery")]


TOO_FEW = """
import os, resource
import gevent
from pathlib import Path
from sessiond.agent.process.pipes import SpawnError
from sessiond.agent.process.agent_process import AgentProcess

def mine():
    return set(os.listdir("/proc/self/fd"))

gevent.sleep(0.01)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
filled = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]  # no number below the last one is free
for room in range(1, 13):
    before = mine()
    resource.setrlimit(resource.RLIMIT_NOFILE, (filled[-1] + 1 + room, hard))
    try:
        AgentProcess.spawn(["/bin/true"], Path("/"), {}, print, print)
        print(room, "it started")
    except (OSError, SpawnError):
        pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if mine() != before:
        print(room, "left behind:", len(mine() - before))
"""


def test_a_start_with_too_few_file_descriptors_leaves_none_open() -> None:
    found = subprocess.run([sys.executable, "-c", TOO_FEW], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == []
