"""The handler: from a durable demand to a durable answer, whatever happens on the way. Real rq, Redis, sessiond."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from base.jobs import Jobs, connect
from jobprocess import JobProcess
from servers import Redis, Sessiond, eventually, scripted_env
from webhook.comment import Comment, Person, Source
from webhook.demand import Demand, State
from webhook.demands import Demands

AT = "2026-01-01T00:00:00Z"
TIMES = {"lease_ttl": 3.0, "claim_window": 1.0, "head_wait": 0.5, "poll_grace": 0.5, "drain_deadline": 3.0}


def comment(key: str, body: str = "What is this?", session: str = "octo/hello", number: int = 1) -> Comment:
    return Comment(
        key=key, source=Source.ISSUE_COMMENT, session=session, repo=session, number=number, is_pull=True, id=hash(key),
        author=Person(7, "User", "mona"), association="MEMBER", body=body, url="", title="A title",
        created_at=AT, updated_at=AT,
    )  # fmt: skip


@dataclass
class Stage:
    """Redis, sessiond and as many handlers as a test starts."""

    redis: Redis
    service: Sessiond
    demands: Demands
    place: Path
    stack: ExitStack
    count: int = 0

    def handler(self, **env: str) -> JobProcess:
        self.count += 1
        given = {
            "REDIS_URL": self.redis.url, "SESSIOND_URL": self.service.url, "SESSIOND_KEY": self.service.keys["handler"],
            "SESSIOND_LEASE_TTL": str(TIMES["lease_ttl"]), **env,
        }  # fmt: skip
        made = JobProcess("webhook.handler", self.place / f"handler-{self.count}", given)
        self.stack.callback(made.close)
        return made

    def comes(self, key: str, body: str = "What is this?", **more: object) -> Demand:
        found = self.demands.accept(f"delivery-{key}", comment(key, body, **more)).demand  # type: ignore[arg-type]
        assert found is not None
        return found

    def becomes(self, key: str, *states: State, seconds: float = 30) -> Demand:
        def look() -> Demand | None:
            found = self.demands.get(key)
            return found if found is not None and found.state in states else None

        return eventually(look, seconds, f"{key} {states}: {self.demands.get(key)}")  # type: ignore[no-any-return]


@pytest.fixture
def stage(redis_server: Redis, sessiond: Callable[..., Sessiond], tmp_path: Path) -> Iterator[Stage]:
    connection = connect(redis_server.url)
    with ExitStack() as stack:
        service = sessiond(scripted_env(**TIMES))
        yield Stage(redis_server, service, Demands(connection, Jobs(connection)), tmp_path, stack)
    connection.close()


def test_a_comment_gets_its_answer_under_one_lease_that_is_released_after_it_is_durable(stage: Stage) -> None:
    handler = stage.handler()
    stage.comes("IC_1", "Say it.\n#say the answer")
    found = stage.becomes("IC_1", State.ANSWERED)
    assert found.text == "the answer" and found.fence and found.runs == 1
    ledger = eventually(
        lambda: (e := stage.service.client().ledger("octo/hello")) and any(x["event"] == "ended" for x in e) and e, 5
    )
    turns = [e for e in ledger if e["event"] == "turn-closed"]
    assert [t["outcome"] for t in turns] == ["completed", "completed"], handler.log()
    assert [e["reason"] for e in ledger if e["event"] == "ended"] == ["released"]
    assert {e["fence"] for e in ledger if e["event"] == "turn-accepted"} == {found.fence}
    pending = stage.demands.redis.zrange("webhook:posts:octo/hello#1", 0, -1)
    assert pending == [b"IC_1"]
