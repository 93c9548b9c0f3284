"""The handler turns a durable demand into a durable answer, in spite of faults. rq, Redis and sessiond are real."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sessiond_common.jobs.queue import Jobs, connect
from sessiond_webhook.demands.comment import Comment, CommentSource, Person
from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.demands.store import Demands
from sessiond_worker.tasks.store import Tasks
from support.jobs.jobprocess import JobProcess
from support.servers import Redis, Sessiond, eventually, scripted_env

AT = "2026-01-01T00:00:00Z"
TIMES = {"lease_ttl": 3.0, "claim_window": 1.0, "head_wait": 0.5, "poll_grace": 0.5, "drain_deadline": 3.0}


def comment(key: str, body: str = "What is this?", session: str = "octo/hello", number: int = 1) -> Comment:
    return Comment(
        key=key, source=CommentSource.ISSUE_COMMENT, session=session, repo=session, number=number, is_pull=True,
        id=hash(key),
        author=Person(7, "User", "mona"), association="MEMBER", body=body, url="", title="A title",
        created_at=AT, updated_at=AT,
    )  # fmt: skip


@dataclass
class HandlerServices:
    """Redis, sessiond, and the handlers that a test starts."""

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
        made = JobProcess("sessiond_webhook.handler", self.place / f"handler-{self.count}", given)
        self.stack.callback(made.close)
        return made

    def comes(self, key: str, body: str = "What is this?", **more: object) -> Demand:
        found = self.demands.accept(f"delivery-{key}", comment(key, body, **more)).demand  # type: ignore[arg-type]
        assert found is not None
        return found

    def becomes(self, key: str, *states: DemandState, seconds: float = 30) -> Demand:
        def look() -> Demand | None:
            found = self.demands.get(key)
            return found if found is not None and found.state in states else None

        return eventually(look, seconds, f"{key} {states}: {self.demands.get(key)}")  # type: ignore[no-any-return]


@pytest.fixture
def services(redis_server: Redis, sessiond: Callable[..., Sessiond], tmp_path: Path) -> Iterator[HandlerServices]:
    connection = connect(redis_server.url)
    with ExitStack() as stack:
        service = sessiond(scripted_env(**TIMES))
        yield HandlerServices(redis_server, service, Demands(connection, Jobs(connection)), tmp_path, stack)
    connection.close()


def test_a_comment_is_answered_under_one_lease_that_is_released_once_the_answer_is_durable(
    services: HandlerServices,
) -> None:
    handler = services.handler()
    services.comes("IC_1", "Say it.\n#say the answer")
    found = services.becomes("IC_1", DemandState.ANSWERED)
    assert found.text == "the answer" and found.fence and found.runs == 1
    ledger = eventually(
        lambda: (e := services.service.client().ledger("octo/hello")) and any(x["event"] == "ended" for x in e) and e, 5
    )
    turns = [e for e in ledger if e["event"] == "turn-closed"]
    assert [t["outcome"] for t in turns] == ["completed", "completed"], handler.log()
    assert [e["reason"] for e in ledger if e["event"] == "ended"] == ["released"]
    assert {e["fence"] for e in ledger if e["event"] == "turn-accepted"} == {found.fence}
    pending = services.demands.redis.zrange("webhook:posts:octo/hello#1", 0, -1)
    assert pending == [b"IC_1"]


def granted(services: HandlerServices, session: str = "octo/hello") -> list[str]:
    """The keys of a session's tickets in the order of their grants."""
    ledger = services.service.client().ledger(session)
    keys = {e["ticket"]: e["key"] for e in ledger if e["event"] == "taken"}
    return [keys[e["ticket"]] for e in ledger if e["event"] == "granted"]


def test_three_handlers_answer_a_flurry_in_order_and_starve_no_other_session(services: HandlerServices) -> None:
    for number in range(8):
        services.comes(f"IC_{number}", f"Say it.\n#delay 200ms\n#tokens 20\n#pace 10ms\n#say answer {number}")
    services.comes("IC_other", "Say it.\n#say other", session="octo/other")
    handlers = [services.handler() for _ in range(3)]
    other = services.becomes("IC_other", DemandState.ANSWERED)
    last = services.demands.get("IC_7")
    assert last is not None and last.state in (DemandState.OPEN, DemandState.ANSWERING), (
        "the other session waited behind a flurry"
    )
    for number in range(8):
        found = services.becomes(f"IC_{number}", DemandState.ANSWERED, seconds=60)
        assert found.text == f"answer {number}"
    assert granted(services) == [f"IC_{number}" for number in range(8)], handlers[0].log()
    assert other.text == "other"


def test_a_comment_that_is_edited_during_its_turn_is_answered_in_its_new_form(services: HandlerServices) -> None:
    handler = services.handler()
    handler.hold("handler-answered")
    services.comes("IC_1", "Say it.\n#say the old answer")
    handler.wait_until_reached("handler-answered")
    newer = replace(comment("IC_1", "Say it.\n#say the new answer"), updated_at="2026-01-01T00:00:09Z")
    assert services.demands.edit("delivery-edit", newer).outcome == "edited"
    handler.release("handler-answered")
    found = services.becomes("IC_1", DemandState.ANSWERED)
    assert found.text == "the new answer" and found.revision == 2
    assert granted(services) == ["IC_1"], "one lease for both"


def test_a_deleted_comment_is_not_answered_and_its_lease_is_released(services: HandlerServices) -> None:
    handler = services.handler()
    handler.hold("handler-answered")
    services.comes("IC_1", "Say it.\n#say an answer")
    handler.wait_until_reached("handler-answered")
    assert services.demands.delete("delivery-gone", "IC_1").outcome == "withdrawn"
    handler.release("handler-answered")
    services.comes("IC_2", "Say it.\n#say two")
    services.becomes("IC_2", DemandState.ANSWERED)
    found = services.becomes("IC_1", DemandState.REFUSED)
    assert found.text is None and found.reason == "deleted"
    ended = [e["reason"] for e in services.service.client().ledger("octo/hello") if e["event"] == "ended"]
    assert ended[0] == "released", "the lease is released at once and does not expire"


@pytest.mark.parametrize(
    ("body", "reason"),
    [("#error", "turn-failed"), ("#say", "turn-failed")],
    ids=["the turn fails each time", "an empty answer"],
)
def test_a_demand_without_an_answer_has_its_reason(services: HandlerServices, body: str, reason: str) -> None:
    services.handler()
    services.comes("IC_1", f"Say it.\n{body}")
    found = services.becomes("IC_1", DemandState.FAILED, seconds=40)
    assert found.reason == reason
    assert services.demands.redis.zrange("webhook:posts:octo/hello#1", 0, -1) == [b"IC_1"], "the note shows the reason"


def test_a_failed_turn_is_repeated_and_its_prompt_states_that(services: HandlerServices) -> None:
    services.handler()
    services.comes("IC_1", "Say it.\n#error 1\n#history")
    found = services.becomes("IC_1", DemandState.ANSWERED)
    first, second, third = json.loads(found.text or "")
    assert [t for t in (first, second, third) if "that turn was cut off (failed" in t] == [second]
    assert "Now answer it" in third


def test_a_force_release_ends_the_demand(services: HandlerServices) -> None:
    handler = services.handler()
    handler.hold("handler-answered")
    services.comes("IC_1", "Say it.\n#say an answer")
    handler.wait_until_reached("handler-answered")
    client = services.service.client()
    fence = client.view("octo/hello")["holder"]["fence"]
    client.force_release("octo/hello", fence, "a test")
    handler.release("handler-answered")
    found = services.becomes("IC_1", DemandState.FAILED, DemandState.ANSWERED)
    # The answer was complete when the lease ended, so it may be stored. Otherwise the reason is shown.
    assert found.state is DemandState.ANSWERED or found.reason == "forced"


def test_a_handler_that_is_stopped_while_it_waits_leaves_its_ticket_to_the_next(services: HandlerServices) -> None:
    client = services.service.client()
    with client.lease("octo/hello", kind="handler", key="someone-else", lease_ttl=TIMES["lease_ttl"]):
        first = services.handler()
        services.comes("IC_1", "Say it.\n#say one")
        waits = lambda: [t for t in client.view("octo/hello")["queue"] if t["key"] == "IC_1" and t["present"]]  # noqa: E731
        ticket = eventually(waits, 10)[0]["id"]
        assert first.stop() == 0
        open_again = services.becomes("IC_1", DemandState.OPEN)
        assert open_again.holder is None
        services.handler()
        assert eventually(waits, 10)[0]["id"] == ticket, "the same ticket"
    found = services.becomes("IC_1", DemandState.ANSWERED)
    assert found.text == "one" and found.runs == 2


def test_a_handler_that_is_stopped_in_a_turn_finishes_it(services: HandlerServices) -> None:
    handler = services.handler()
    services.comes("IC_1", "Say it.\n#tokens 60\n#pace 20ms\n#say " + "word " * 60)
    client = services.service.client()
    eventually(lambda: any(e["event"] == "turn-started" for e in client.ledger("octo/hello")), 15)
    assert handler.stop() == 0
    found = services.demands.get("IC_1")
    assert found is not None and found.state is DemandState.ANSWERED, handler.log()


def test_a_promised_task_is_durable_with_the_answer_that_promises_it(services: HandlerServices) -> None:
    handler = services.handler()
    handler.hold("handler-stored")
    promise = '{"promise": {"title": "Mend it", "instructions": "Mend the parser, with a test."}}'
    services.comes("IC_1", f"Say it.\n#lines I will mend it.|{promise}")
    handler.wait_until_reached("handler-stored")
    found = services.demands.get("IC_1")
    assert found is not None and found.text == "I will mend it." and found.task is not None
    task = Tasks(services.demands.redis).get(found.task)
    assert (task.title, task.session, task.source.demand) == ("Mend it", "octo/hello", "IC_1")
    assert task.instructions == "Mend the parser, with a test."
    assert services.demands.jobs.live(task.job)
    handler.release("handler-stored")
