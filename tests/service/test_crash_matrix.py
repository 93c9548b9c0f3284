"""sessiond killed, Redis killed, Redis put back older: at each point of the step that each event makes.

Each row is a session of its own; a test plays many at once, so that one crash strikes them all, each at its point.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from events import DEADLINES, EVENTS, Event
from scenes import Scene
from servers import Redis, Sessiond, eventually, scripted_env, tree
from sessiond.hooks import STEP_POINTS
from size import FULL

Start = Callable[..., Sessiond]
VICTIMS = ("sessiond", "redis", "redis, older", "both, older")
LONG = {
    "head_wait": 60, "poll_grace": 90, "absence": 600, "claim_window": 90, "lease_ttl": 90, "owner_ttl": 90,
    "owner_renew": 0.5, "owner_doubt": 60,
}  # fmt: skip
SHORT = {
    "head_wait": 0.5, "poll_grace": 0.5, "absence": 0.8, "claim_window": 1.5, "lease_ttl": 1.5, "drain_deadline": 1,
}  # fmt: skip


@dataclass
class Row:
    """One event, held at one point, in a session of its own."""

    event: Event
    point: str
    scene: Scene
    play: Iterator[None]
    scores: dict[str, int]

    def place(self, hooks: Path, what: str) -> Path:
        return hooks / self.scene.session / f"{self.point}.{self.event.step}.{what}"


def batches(events: tuple[Event, ...], quick: int) -> list[Any]:
    """(victim, rows): all of them, or each event once with `quick` victims in turn."""
    if FULL:
        return [
            pytest.param(victim, tuple((e, STEP_POINTS[(n + shift) % 3]) for n, e in enumerate(events)), id=f"{victim}-{shift}")
            for victim in VICTIMS for shift in range(3)
        ]  # fmt: skip
    chosen = VICTIMS[:quick]
    return [
        pytest.param(
            victim, tuple((e, STEP_POINTS[(n // quick) % 3]) for n, e in enumerate(events) if n % quick == at), id=victim
        )
        for at, victim in enumerate(chosen)
    ]  # fmt: skip


class Crash:
    """One crash that strikes every row of a test."""

    def __init__(self, redis: Redis, start: Start, victim: str, env: dict[str, str], place: Path) -> None:
        self.redis, self.victim, self.place = redis, victim, place
        self.hooks = place / "hooks"
        self.env = {**env, "SESSIOND_HOOKS_DIR": str(self.hooks), "SESSIOND_MAX_AGENTS": "64"}
        self.service = start(self.env)
        self.pool = ThreadPoolExecutor(6)

    def each(self, work: Callable[[Row], Any], rows: list[Row]) -> list[Any]:
        return list(self.pool.map(work, rows))

    def play(self, chosen: tuple[tuple[Event, str], ...]) -> list[Row]:
        """Every row up to its point."""
        rows = []
        for number, (event, point) in enumerate(chosen):
            scene = Scene(self.service, f"octo/row{number}")
            rows.append(Row(event, point, scene, event.play(scene), {}))
        self.each(lambda row: next(row.play), rows)
        if self.older:
            self.redis.copy(self.place / "older")
            self.each(self.remember, rows)
        self.each(lambda row: next(row.play), rows)
        for row in rows:
            row.place(self.hooks, "hold").parent.mkdir(parents=True)
            row.place(self.hooks, "hold").touch()
        self.each(lambda row: next(row.play), rows)
        for row in rows:
            eventually(row.place(self.hooks, "reached").exists, 30, f"{row.event.name} at {row.point}")
        if not self.older or self.victim == "redis, older":
            self.each(self.remember, rows)
        return rows

    @property
    def older(self) -> bool:
        return self.victim.endswith("older")

    def remember(self, row: Row) -> None:
        row.scores = self.scores(row)

    def scores(self, row: Row) -> dict[str, int]:
        """Every living ticket's score, as Redis has it."""
        with redis_library.Redis.from_url(self.redis.url, decode_responses=True) as redis:
            found = redis.hgetall(f"sessiond:{{{row.scene.session}}}:tickets")
        return {ticket: json.loads(text)["score"] for ticket, text in found.items()}  # type: ignore[union-attr]

    def strike(self) -> None:
        """The crash, and what an operator's supervisor does after it."""
        kills = self.victim in ("sessiond", "both, older")
        if kills:
            self.service.kill9()
        if self.victim != "sessiond":
            self.redis.kill9()
        if self.older:
            self.redis.put_back(self.place / "older")
        shutil.rmtree(self.hooks)
        if self.victim != "sessiond":
            self.redis.start()
        if kills:
            self.service._env.update(scripted_env(**LONG))
            self.service.start(wait=False)
        eventually(self.service.ready, 30)

    def agents(self) -> list[str]:
        """The conversation of every agent that runs."""
        found = []
        for process in [*tree(self.service.pid), *self.service.left()]:
            words = process.cmdline()
            found += [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("--session-id", "--resume")]
        return found


def run(crash: Crash, chosen: tuple[tuple[Event, str], ...], matrix: Callable[..., None]) -> None:
    rows = crash.play(chosen)
    began = time.monotonic()
    crash.strike()
    wrong = {}
    for row, (told, took, left, faults) in zip(rows, crash.each(lambda row: recovered(crash, row), rows), strict=True):
        matrix(
            "steps", event=row.event.name, point=row.point, victim=crash.victim, told=told, left=left,
            outcome="; ".join(faults) or "as it must be", seconds=f"{took - began:.1f}",
        )  # fmt: skip
        if faults:
            wrong[row.event.name, row.point] = faults
    assert wrong == {}, crash.service.log_text()


def recovered(crash: Crash, row: Row) -> tuple[str, float, int, list[str]]:
    """What the row's callers were told, when it was over, how many tickets were left, and what is wrong."""
    s, left = row.scene, 0
    try:
        if crash.victim != "both, older":
            assert next(row.play, None) is None
        for call in s.calls:
            call.end()
        places(crash, row)
        s.check()
        left = s.drain()
        s.check()
    except Exception as error:
        s.wrong.append(f"{type(error).__name__}: {error}"[:600])
    return ", ".join(call.told for call in s.calls), time.monotonic(), left, s.wrong


def places(crash: Crash, row: Row) -> None:
    """No place is lost: what lived has its old score, unless the event itself ends it."""
    now = crash.scores(row)
    names = {ticket: name for name, ticket in row.scene.ids.items()}
    for ticket, score in row.scores.items():
        if now.get(ticket) != score and not (ticket not in now and names[ticket] in row.event.ends):
            row.scene.wrong.append(f"{names[ticket]} had {score}, has {now.get(ticket)}")


@pytest.mark.parametrize(("victim", "chosen"), batches(EVENTS, 4))
def test_calls_and_turns(
    sessiond: Start, redis_server: Redis, tmp_path: Path, matrix: Callable[..., None], victim: str,
    chosen: tuple[tuple[Event, str], ...],
) -> None:  # fmt: skip
    run(Crash(redis_server, sessiond, victim, scripted_env(**LONG), tmp_path), chosen, matrix)
