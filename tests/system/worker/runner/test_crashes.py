"""SIGKILL of each process at each fault point. The task finishes, repeated prompts are announced, no runs overlap.

Prints its matrix. FULL=1 runs every row. The quick form runs each fault point with some of the victims.
"""

import os
import signal
import time
from collections.abc import Callable

from sessiond.verify import verify
from sessiond_worker.runner.runner import FAULT_POINTS
from sessiond_worker.tasks.model import TaskState
from support.worker.worker_scene import Scene, line, unannounced_repeats

FULL = os.environ.get("FULL") == "1"
VICTIMS = ("work-horse", "parent", "both", "sessiond", "redis")
ROWS = [
    (step, victim)
    for at, step in enumerate(FAULT_POINTS)
    for number, victim in enumerate(VICTIMS)
    if FULL or (at + number) % 2 == 0
]


def crash(s: Scene, victim: str, horse: int, point: str) -> set[int]:
    """Kill the victim, restart it if nothing else does, and let the run continue. Returns the killed pids."""
    parent = s.worker.parent()
    victims = {"work-horse": [horse], "parent": [parent.pid], "both": [parent.pid, horse]}.get(victim, [])
    if victims:
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        s.worker.release(point)
        return set(victims)
    if victim == "sessiond":
        s.service.kill9()
        s.worker.release(point)
        s.service.start()
    else:
        s.redis_server.kill9()
        s.worker.release(point)
        s.redis_server.start()
    return set()


def runs_overlap(runs: list[tuple[str, str, int]], task: str, dead: set[int]) -> bool:
    """Return whether a run of this task began while another one lived and had not ended."""
    active: set[int] = set()
    for word, which, pid in runs:
        if which == task and word == "begin":
            if active - dead:
                return True
            active = {pid}
        elif which == task:
            active.discard(pid)
    return False


def row(s: Scene, number: int, step: str, victim: str) -> str:
    """Make one crash. Returns the result as text. Its first word is `done` if there is no error."""
    session = f"octo/row{number}"
    s.worker.hold(step)
    words = line("done", "finished", tokens="80", pace="10ms")
    task = s.add(words, key=f"row-{number}", session=session)
    horse = s.worker.wait_until_reached(step)
    begun = time.monotonic()
    dead = crash(s, victim, horse, step)
    found = s.wait_for_end(task, 60)
    took = time.monotonic() - begun
    prompts = [p for p in s.prompts() if task.id in p]
    entries = s.client.ledger(session)
    problems = verify(entries).violations
    faults = [
        *(["not done"] if found.state is not TaskState.DONE else []),
        *(["sent twice unannounced"] if unannounced_repeats(prompts) else []),
        *(["two runs at once"] if runs_overlap(s.worker.runs(), task.id, dead) else []),
        *(["a ticket is left"] if s.client.view(session)["queue"] else []),
        *([f"the ledger: {problems}"] if problems else []),
    ]
    summary = f"{found.runs} runs, {len(prompts)} prompts, attempt {found.turn.attempt}, {took:.1f} s"
    return f"{', '.join(faults) or 'done'}: {summary}"


def test_a_task_finishes_after_a_crash_at_any_fault_point(scene: Callable[..., Scene]) -> None:
    s = scene()
    outcomes = {}
    for number, (step, victim) in enumerate(ROWS):
        outcomes[step, victim] = row(s, number, step, victim)
        print(f"{step:<16} {victim:<11} {outcomes[step, victim]}", flush=True)
    assert {k: v for k, v in outcomes.items() if not v.startswith("done:")} == {}
