"""The crash matrix of an answer: kill -9 of each process at each named step.

The demand must always end with exactly one posted answer. The quick form runs a part of the rows; FULL=1 runs all.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from sessiond_common.jobs.queue import Jobs, connect
from sessiond_webhook.demands.comment import Comment, CommentSource, Person
from sessiond_webhook.demands.machine import DemandState
from sessiond_webhook.demands.store import Demands
from support.jobs.jobprocess import JobProcess
from support.servers import Redis, Sessiond, Webhook, eventually, scripted_env

AT = "2026-01-01T00:00:00Z"
TIMES = {"lease_ttl": 2.0, "claim_window": 1.0, "head_wait": 0.5, "poll_grace": 0.5, "drain_deadline": 3.0}
STEPS = ("handler-claimed", "handler-leased", "in-turn", "handler-answered", "handler-stored", "handler-released")
VICTIMS = ("handler", "work-horse", "parent", "sessiond", "Redis", "Redis and rq's keys")
ROWS = [(victim, step) for victim in VICTIMS for step in STEPS]
QUICK = ROWS if os.environ.get("FULL") else ROWS[:: len(STEPS) + 1] + ROWS[3::11]


class Services:
    """Redis, sessiond, a webhook with its sweeper, a poster with an outbox, one handler."""

    def __init__(self, redis: Redis, service: Sessiond, place: Path, stack: ExitStack) -> None:
        self.redis, self.service, self.place = redis, service, place
        self.env = {
            "REDIS_URL": redis.url, "SESSIOND_URL": service.url, "SESSIOND_KEY": service.keys["handler"],
            "SESSIOND_LEASE_TTL": str(TIMES["lease_ttl"]), "RUN_TTL": "2", "OUTBOX_DIR": str(place / "outbox"),
        }  # fmt: skip
        self.stack = stack
        self.connection = connect(redis.url)
        stack.callback(self.connection.close)
        self.demands = Demands(self.connection, Jobs(self.connection))

    def sweeper(self) -> None:
        """Start a webhook process, for its sweeper."""
        made = Webhook(self.redis.url, self.place / "webhook", {**self.env, "SWEEP_SECONDS": "0.5"})
        self.stack.callback(made.close)

    def process(self, module: str, name: str, **env: str) -> JobProcess:
        made = JobProcess(module, self.place / name, {**self.env, **env})
        self.stack.callback(made.close)
        return made


@pytest.fixture
def services(redis_server: Redis, sessiond: Callable[..., Sessiond], tmp_path: Path) -> Iterator[Services]:
    with ExitStack() as stack:
        yield Services(redis_server, sessiond(scripted_env(**TIMES)), tmp_path, stack)


def comment(key: str) -> Comment:
    return Comment(
        key=key, source=CommentSource.ISSUE_COMMENT, session="octo/hello", repo="octo/hello", number=1, is_pull=True,
        id=41,
        author=Person(7, "User", "mona"), association="MEMBER", body="Say it.\n#pace 20ms\n#tokens 20\n#say it is said",
        url="", title="A title", created_at=AT, updated_at=AT,
    )  # fmt: skip


def kill(services: Services, handler: JobProcess, victim: str) -> None:
    if victim == "sessiond":
        services.service.kill9()
        services.service.start()
    elif victim.startswith("Redis"):
        services.redis.kill9()
        services.redis.start()
        if victim != "Redis":
            for name in services.connection.scan_iter("rq:*"):
                services.connection.delete(name)
    else:
        handler.kill9(horse=victim != "parent", parent=victim != "work-horse")


@pytest.mark.parametrize(("victim", "step"), QUICK)
def test_a_demand_ends_in_exactly_one_posted_answer(
    services: Services, victim: str, step: str, matrix: Callable[..., None]
) -> None:
    services.sweeper()
    services.process("sessiond_webhook.poster", "poster")
    handler = services.process("sessiond_webhook.handler", "handler")
    if step != "in-turn":
        handler.hold(step)
    services.demands.accept("delivery-1", comment("IC_1"))
    client = services.service.client()
    orphan: psutil.Process | None = None
    if step == "in-turn":
        eventually(lambda: any(e["event"] == "turn-started" for e in client.ledger("octo/hello")), 20)
    else:
        handler.wait_until_reached(step)
    if victim == "parent":
        orphan = handler.horse()
    kill(services, handler, victim)
    if victim in ("handler", "parent"):
        handler.start()  # as a supervisor does
    handler.release(step)

    def ended() -> bool:
        found = services.demands.get("IC_1")
        return found is not None and found.state is DemandState.POSTED

    eventually(ended, 60, f"{services.demands.get('IC_1')}\n{handler.log()[-4000:]}")
    found = services.demands.get("IC_1")
    posted = [f.read_text() for f in (services.place / "outbox").rglob("*.md")]
    answers = [text for text in posted if "it is said" in text]
    turns = [e for e in client.ledger("octo/hello") if e["event"] == "turn-accepted"]
    assert found is not None
    matrix("answers", victim=victim, step=step, runs=found.runs, turns=len(turns), posted=len(answers))
    assert len(posted) == len(answers) == 1
    if orphan is not None and orphan.is_running():
        orphan.send_signal(signal.SIGKILL)
