"""Crashes at each point of the step of each event: sessiond killed, Redis killed, Redis replaced by an older copy.

Each row has its own session. A test prepares many rows, so that one crash hits each of them at its point.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis as redis_library

from sessiond.session.fault_points import STEP_POINTS
from support.servers import SCRIPTED, Redis, Sessiond, eventually, scripted_env, tree
from support.session.crash_events import DEADLINES, ENDINGS, EVENTS, Event
from support.session.crash_scenes import Scene
from support.size import FULL

Start = Callable[..., Sessiond]
Chosen = list[tuple[Event, str]]
VICTIMS = ("sessiond", "redis", "redis, older", "both, older")
LONG = {
    "head_wait": 60, "poll_grace": 90, "absence": 600, "claim_window": 90, "lease_ttl": 90, "owner_ttl": 90,
    "owner_renew": 0.5, "owner_doubt": 60, "max_hold": 1800, "ticket_ttl": 86_400,
}  # fmt: skip
SHORT = {
    "head_wait": 0.5, "poll_grace": 0.5, "absence": 4, "claim_window": 3, "lease_ttl": 5, "drain_deadline": 1,
}  # fmt: skip


ENDS = {"ticket_ttl": 6, "max_hold": 2, "claim_window": 0.5}


@dataclass
class Row:
    """One event that is held at one point, in its own session."""

    event: Event
    point: str
    scene: Scene
    steps: Iterator[None]
    scores: dict[str, int] = field(default_factory=dict)
    """The tickets that were queued or leased at the crash, or when the older copy was made."""
    left: int = 0

    def place(self, hooks: Path, what: str) -> Path:
        return hooks / self.scene.session / f"{self.point}.{self.event.step}.{what}"


def batches(events: tuple[Event, ...], quick: Sequence[str]) -> list[Any]:
    """Return (victim, rows): every event at every point with every victim, or once with the `quick` victims."""
    numbered = list(enumerate(events))
    if FULL:
        return [
            pytest.param(victim, [(e, STEP_POINTS[(n + shift) % 3]) for n, e in numbered], id=f"{victim}-{shift + 1}")
            for victim in VICTIMS
            for shift in range(3)
        ]
    many = len(quick)
    return [
        pytest.param(victim, [(e, STEP_POINTS[n // many % 3]) for n, e in numbered if n % many == at], id=victim)
        for at, victim in enumerate(quick)
    ]


def at_every_point(events: tuple[Event, ...], quick: str) -> list[Any]:
    """Return (victim, rows): every event at every point in one test, or each event once with the `quick` victim."""
    if FULL:
        rows = [(event, point) for event in events for point in STEP_POINTS]
        return [pytest.param(victim, rows, id=victim) for victim in VICTIMS]
    return [pytest.param(quick, [(e, STEP_POINTS[n % 3]) for n, e in enumerate(events)], id=quick)]


class Crash:
    """One crash that hits every row of a test."""

    def __init__(self, redis: Redis, start: Start, victim: str, env: dict[str, str], place: Path) -> None:
        self.redis, self.victim, self.place = redis, victim, place
        self.hooks = place / "hooks"
        self.long_env = scripted_env(**LONG)
        self.env = env
        self.service = start({**env, "SESSIOND_HOOKS_DIR": str(self.hooks), "SESSIOND_MAX_AGENTS": "64"})
        self.pool = ThreadPoolExecutor(6)

    def each(self, work: Callable[[Row], Any], rows: list[Row]) -> list[Any]:
        return list(self.pool.map(work, rows))

    def prepare(self, chosen: Chosen) -> list[Row]:
        """Run every row until its step is held at its point."""
        rows = []
        for number, (event, point) in enumerate(chosen):
            scene = Scene(self.service, f"octo/row{number}")
            rows.append(Row(event, point, scene, event.run(scene)))
        self.each(lambda row: next(row.steps), rows)
        if self.older:
            self.redis.copy(self.place / "older")
            self.each(self.remember, rows)
        self.each(lambda row: next(row.steps), rows)
        for row in rows:
            row.place(self.hooks, "hold").parent.mkdir(parents=True)
            row.place(self.hooks, "hold").touch()
        self.each(lambda row: next(row.steps), rows)
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
        """Return the score of every queued or leased ticket, as stored in Redis."""
        with redis_library.Redis.from_url(self.redis.url, decode_responses=True) as redis:
            found = redis.hgetall(f"sessiond:{{{row.scene.session}}}:tickets")
        return {ticket: json.loads(text)["score"] for ticket, text in found.items()}  # type: ignore[union-attr]

    def strike(self) -> None:
        """Make the crash, and restart what a supervisor would restart."""
        kills = self.victim in ("sessiond", "both, older")
        if kills:
            self.service.kill9()
        if self.victim != "sessiond":
            self.redis.kill9()
        if self.older:
            self.redis.restore_data(self.place / "older")
        shutil.rmtree(self.hooks)
        if self.victim != "sessiond":
            self.redis.start()
        if kills:
            self.service._env.update(self.long_env)
            self.env = self.long_env
            self.service.start(wait=False)
        eventually(self.service.ready, 30)

    def recovered(self, row: Row) -> None:
        """Repeat the calls, and check that each ticket has its old score unless the event ends it."""
        s = row.scene
        if self.victim != "both, older":
            assert next(row.steps, None) is None
        for call in s.calls:
            call.end()
        eventually(lambda: not self.misplaced(row), 20, lambda: f"places lost: {self.misplaced(row)}")
        s.check()

    def misplaced(self, row: Row) -> list[str]:
        now, names = self.scores(row), {ticket: name for name, ticket in row.scene.ids.items()}
        return [
            f"{names[ticket]} had {score}, has {now.get(ticket)}"
            for ticket, score in row.scores.items()
            if now.get(ticket) != score and not (ticket not in now and names[ticket] in row.event.ends)
        ]

    def start_with_long_times(self) -> None:
        """Check that each conversation has one agent, and restart the service with long times."""
        agents = self.agents()
        assert len(agents) == len(set(agents)), agents
        if self.env != self.long_env:
            self.service.terminate()
            self.service._env.update(self.long_env)
            self.service.start()

    def drained(self, row: Row) -> None:
        row.left = row.scene.drain()
        row.scene.check()

    def agents(self) -> list[str]:
        """Return the conversation of every running agent."""
        found = []
        for process in {*tree(self.service.pid), *self.service.left()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if words[: len(SCRIPTED)] == list(SCRIPTED):
                    found += [words[n + 1] for n, word in enumerate(words) if word in ("--session-id", "--resume")]
        return found


def run(crash: Crash, chosen: Chosen, matrix: Callable[..., None]) -> None:
    rows = crash.prepare(chosen)
    crash.strike()
    crash.each(lambda row: attempt(row, lambda: crash.recovered(row)), rows)
    crash.start_with_long_times()
    crash.each(lambda row: attempt(row, lambda: crash.drained(row)), rows)
    for row in rows:
        outcomes = ", ".join(call.outcome for call in row.scene.calls)
        outcome = "; ".join(row.scene.wrong) or f"as it must be, {row.left} drained"
        matrix("steps", event=row.event.name, point=row.point, victim=crash.victim, outcomes=outcomes, outcome=outcome)
    wrong = {(row.event.name, row.point): row.scene.wrong for row in rows if row.scene.wrong}
    assert wrong == {}, crash.service.log_text()


def attempt(row: Row, work: Callable[[], None]) -> None:
    """Record a failure in its row, so that the other rows continue."""
    try:
        if not row.scene.wrong:
            work()
    except (Exception, pytest.fail.Exception) as error:
        row.scene.wrong.append(f"{type(error).__name__}: {error}"[:600])


@pytest.mark.parametrize(("victim", "chosen"), batches(EVENTS, VICTIMS))
def test_a_crash_during_a_call_or_turn_loses_no_place(
    sessiond: Start, redis_server: Redis, tmp_path: Path, matrix: Callable[..., None], victim: str, chosen: Chosen
) -> None:
    run(Crash(redis_server, sessiond, victim, scripted_env(**LONG), tmp_path), chosen, matrix)


@pytest.mark.parametrize(("victim", "chosen"), batches(DEADLINES, ("sessiond", "redis, older")))
def test_a_crash_at_a_deadline_loses_no_place(
    sessiond: Start, redis_server: Redis, tmp_path: Path, matrix: Callable[..., None], victim: str, chosen: Chosen
) -> None:
    """The times are short until the crash, and long for the next owner."""
    env = scripted_env("ignore-interrupt", **{**LONG, **SHORT})
    run(Crash(redis_server, sessiond, victim, env, tmp_path), chosen, matrix)


@pytest.mark.parametrize(("victim", "chosen"), at_every_point(ENDINGS, "sessiond"))
def test_a_crash_at_the_end_of_a_ticket_loses_no_place(
    sessiond: Start, redis_server: Redis, tmp_path: Path, matrix: Callable[..., None], victim: str, chosen: Chosen
) -> None:
    """Tickets that end by a deadline or by losses. The times are short until the crash and long afterwards."""
    run(Crash(redis_server, sessiond, victim, scripted_env(**{**LONG, **ENDS}), tmp_path), chosen, matrix)
