"""kill -9 of each process at each named step: the task finishes, nothing is sent twice untold, never two runs at once.

Prints its matrix. FULL=1 runs every row; else each step with some victims, so that each victim comes at three steps.
"""

import os
import signal
import time
from collections.abc import Callable

from sessiond.verify import verify
from sessiond_worker.runner.runner import FAULT_POINTS
from sessiond_worker.tasks.model import TaskState
from support.worker_scene import Scene, line, untold

FULL = os.environ.get("FULL") == "1"
VICTIMS = ("work-horse", "parent", "both", "sessiond", "redis")
ROWS = [
    (step, victim)
    for at, step in enumerate(FAULT_POINTS)
    for number, victim in enumerate(VICTIMS)
    if FULL or (at + number) % 2 == 0
]


def strike(s: Scene, victim: str, horse: int, point: str) -> set[int]:
    """Kills, starts again what nobody else starts, lets go; the pids that are dead by it."""
    parent = s.worker.parent()
    doomed = {"work-horse": [horse], "parent": [parent.pid], "both": [parent.pid, horse]}.get(victim, [])
    if doomed:
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        s.worker.go_on(point)
        return set(doomed)
    if victim == "sessiond":
        s.service.kill9()
        s.worker.go_on(point)
        s.service.start()
    else:
        s.redis_server.kill9()
        s.worker.go_on(point)
        s.redis_server.start()
    return set()


def two_at_once(runs: list[tuple[str, str, int]], task: str, dead: set[int]) -> bool:
    """Whether a run of this task began while another one's process lived and had not ended."""
    at_work: set[int] = set()
    for word, which, pid in runs:
        if which == task and word == "begin":
            if at_work - dead:
                return True
            at_work = {pid}
        elif which == task:
            at_work.discard(pid)
    return False


def row(s: Scene, number: int, step: str, victim: str) -> str:
    """One crash; what became of it, in words. The first word is `done` when all is well."""
    session = f"octo/row{number}"
    s.worker.hold(step)
    words = line("done", "finished", tokens="80", pace="10ms")
    task = s.add(words, key=f"row-{number}", session=session)
    horse = s.worker.reached(step)
    begun = time.monotonic()
    dead = strike(s, victim, horse, step)
    found = s.settled(task, 60)
    took = time.monotonic() - begun
    prompts = [p for p in s.prompts() if task.id in p]
    entries = s.client.ledger(session)
    problems = verify(entries).violations
    faults = [
        *(["not done"] if found.state is not TaskState.DONE else []),
        *(["sent twice untold"] if untold(prompts) else []),
        *(["two runs at once"] if two_at_once(s.worker.runs(), task.id, dead) else []),
        *(["a ticket is left"] if s.client.view(session)["queue"] else []),
        *([f"the ledger: {problems}"] if problems else []),
    ]
    said = f"{found.runs} runs, {len(prompts)} prompts, attempt {found.turn.attempt}, {took:.1f} s"
    return f"{', '.join(faults) or 'done'}: {said}"


def test_crash_matrix(scene: Callable[..., Scene]) -> None:
    s = scene()
    outcomes = {}
    for number, (step, victim) in enumerate(ROWS):
        outcomes[step, victim] = row(s, number, step, victim)
        print(f"{step:<16} {victim:<11} {outcomes[step, victim]}", flush=True)
    assert {k: v for k, v in outcomes.items() if not v.startswith("done:")} == {}
