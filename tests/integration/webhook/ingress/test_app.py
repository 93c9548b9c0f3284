"""Deliveries become durable demands with tickets: duplicates, reordering, withdrawals, outages, slow clients."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest

from sessiond.verify import verify
from sessiond_common.jobs.queue import DEMANDS, Jobs, connect
from sessiond_webhook.demands.machine import DemandState
from sessiond_webhook.demands.store import Demands
from support.servers import Caller, Redis, Sessiond, Webhook, eventually, scripted_env
from support.webhook import payloads

SESSION = "codertocat/hello-world"
Start = Callable[..., Webhook]
StartSessiond = Callable[..., Sessiond]


def store(redis: Redis) -> Demands:
    connection = connect(redis.url)
    return Demands(connection, Jobs(connection))


def queued(demands: Demands) -> int:
    return len(demands.jobs.queue(DEMANDS).job_ids)


def reach(service: Sessiond) -> dict[str, str]:
    return {"SESSIOND_URL": service.url, "SESSIOND_KEY": service.keys["handler"]}


def said(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json()["outcome"]


# ---- one demand ----------------------------------------------------------------------------------


def test_a_comment_becomes_a_demand_once_with_its_ticket(
    webhook: Start, sessiond: StartSessiond, redis_server: Redis
) -> None:
    queue = sessiond(scripted_env())
    service, demands = webhook(reach(queue)), store(redis_server)
    first = service.post("issue_comment", payloads.comment("IC_1"), "one")
    assert said(first) == (202, "accepted") and first.json()["place"] == 1
    found = demands.get("IC_1")
    assert found is not None and (found.state, found.ticket, found.place) == (
        DemandState.OPEN,
        first.json()["ticket"],
        1,
    )
    tickets = queue.client().view(SESSION)["queue"]
    assert [(t["key"], t["kind"], t["id"]) for t in tickets] == [("IC_1", "handler", found.ticket)]
    assert queued(demands) == 1 and demands.jobs.live(found.job)
    for delivery, word in (("one", "duplicate"), ("two", "known"), ("two", "duplicate")):
        assert said(service.post("issue_comment", payloads.comment("IC_1", "@helper else"), delivery)) == (202, word)
    assert demands.get("IC_1") == found and queued(demands) == 1
    assert len(queue.client().view(SESSION)["queue"]) == 1
    second = service.post("pull_request_review_comment", payloads.review_comment("PRRC_2"))
    assert said(second) == (202, "accepted") and second.json()["place"] == 2
    counted = service.counted()
    assert (counted["issue_comment", "accepted"], counted["issue_comment", "duplicate"]) == (1, 2)
    assert counted["issue_comment", "known"] == counted["pull_request_review_comment", "accepted"] == 1
    log = service.log_text(0)
    assert "IC_1" in log and "why?" not in log and Webhook.SECRET not in log


def test_a_comment_can_be_edited_and_deleted_before_and_after_its_answer(
    webhook: Start, sessiond: StartSessiond, redis_server: Redis
) -> None:
    queue = sessiond(scripted_env())
    service, demands = webhook(reach(queue)), store(redis_server)
    editor = {"login": "mona", "id": 1, "type": "User"}

    def edited(body: str, at: str) -> Any:
        return payloads.comment(action="edited", body=body, comment__updated_at=at, sender=editor)

    service.post("issue_comment", payloads.comment())
    service.post("issue_comment", payloads.comment("IC_2"))
    assert said(service.post("issue_comment", edited("newest", "2019-05-15T15:20:40Z"))) == (202, "edited")
    assert said(service.post("issue_comment", edited("older", "2019-05-15T15:20:30Z"))) == (202, "unchanged")
    found = demands.get("IC_1")
    assert found is not None and (found.comment.body, found.revision) == ("newest", 2)
    assert found.comment.author.id == payloads.AUTHOR
    assert [t["key"] for t in queue.client().view(SESSION)["queue"]] == ["IC_1", "IC_2"]
    assert said(service.post("issue_comment", payloads.comment(action="deleted"))) == (202, "withdrawn")
    assert [t["key"] for t in queue.client().view(SESSION)["queue"]] == ["IC_2"]
    gone = demands.get("IC_1")
    assert gone is not None and (gone.state, gone.reason) == (DemandState.REFUSED, "deleted")
    assert demands.withdrawals() == []
    assert said(service.post("issue_comment", edited("too late", "2019-05-15T15:20:50Z"))) == (202, "late")
    assert said(service.post("issue_comment", payloads.comment(action="deleted"))) == (202, "late")
    assert demands.get("IC_1") == gone


def test_events_that_arrive_before_their_comment_are_remembered(webhook: Start, redis_server: Redis) -> None:
    service, demands = webhook({"WEBHOOK_TICKET_SECONDS": "0.2"}), store(redis_server)
    newer = payloads.comment("IC_e", action="edited", body="newer", comment__updated_at="2019-05-15T15:20:40Z")
    older = payloads.comment("IC_e", action="edited", body="older", comment__updated_at="2019-05-15T15:20:30Z")
    for one in (newer, older):
        assert said(service.post("issue_comment", one)) == (202, "early")
    assert said(service.post("issue_comment", payloads.comment("IC_e"))) == (202, "accepted")
    found = demands.get("IC_e")
    assert found is not None and found.comment.body == "newer"
    # The comment stays deleted if `deleted` arrives before `edited` and `created`.
    for action, word in (("deleted", "early"), ("edited", "early"), ("created", "withdrawn")):
        assert said(service.post("issue_comment", payloads.comment("IC_d", action=action))) == (202, word)
    assert demands.get("IC_d") is None
    # The closing arrives before an older comment. For a newer comment, its own payload decides.
    closing = payloads.load("pull_request.closed")
    assert said(service.post("pull_request", closing)) == (202, "nothing")
    overtaken = service.post("pull_request_review_comment", payloads.review_comment("PRRC_o"))
    assert said(overtaken) == (202, "refused")
    found = demands.get("PRRC_o")
    assert found is not None and (found.state, found.reason, found.tell) == (
        DemandState.REFUSED,
        "pull-request-closed",
        True,
    )
    reopened = payloads.review_comment("PRRC_r", comment__created_at="2019-05-15T16:00:00Z")
    assert said(service.post("pull_request_review_comment", reopened)) == (202, "accepted")


def test_a_closed_pull_request_withdraws_its_own_demands_and_no_others(
    webhook: Start, sessiond: StartSessiond, redis_server: Redis
) -> None:
    queue = sessiond(scripted_env())
    service, demands = webhook(reach(queue)), store(redis_server)
    for key in ("PRRC_1", "PRRC_2"):
        service.post("pull_request_review_comment", payloads.review_comment(key))
    service.post("issue_comment", payloads.comment("IC_issue", pull=False, issue__number=2))
    service.post("issue_comment", payloads.comment("IC_other"))
    assert said(service.post("pull_request", payloads.load("pull_request.closed"), "closing")) == (202, "withdrawn")
    assert said(service.post("pull_request", payloads.load("pull_request.closed"), "closing")) == (202, "duplicate")
    assert [t["key"] for t in queue.client().view(SESSION)["queue"]] == ["IC_issue", "IC_other"]
    assert [found.key for found in demands.unanswered(SESSION)] == ["IC_issue", "IC_other"]
    late = payloads.review_comment("PRRC_3", pull_request__state="closed")
    assert said(service.post("pull_request_review_comment", late)) == (202, "refused")
    for key in ("PRRC_1", "PRRC_2", "PRRC_3"):
        found = demands.get(key)
        assert found is not None and found.state is DemandState.REFUSED and found.tell
        assert found.reason == "pull-request-closed"


def test_reviews_and_tasks_are_accepted(webhook: Start) -> None:
    service = webhook()
    assert said(service.post("pull_request_review", payloads.review(state="approved"), "r")) == (202, "woken")
    assert said(service.post("pull_request_review", payloads.review(state="approved"), "r")) == (202, "duplicate")
    labelled = payloads.change(payloads.load("issues.labeled"), label__name="sessiond-task")
    assert said(service.post("issues", labelled, "t")) == (202, "task")
    assert said(service.post("issues", labelled, "t")) == (202, "duplicate")
    assert service.post("pull_request_review", payloads.review(body="")).status == 204


def test_an_arriving_comment_preempts_a_worker_during_its_turn(
    webhook: Start, sessiond: StartSessiond, caller: Callable[..., Caller]
) -> None:
    queue = sessiond(scripted_env())
    service = webhook(reach(queue))
    worker = caller(queue, "worker")
    worker.do(session=SESSION, kind="worker", key="loop", prompt="#tokens 2000\n#pace 5ms", timeout=60)
    worker.wait_for("granted")
    assert said(service.post("issue_comment", payloads.comment())) == (202, "accepted")
    entries = queue.client().ledger(SESSION)
    preempted = [e for e in entries if e.get("reason") == "preempted"]
    assert preempted, [e["event"] for e in entries]
    assert verify(entries).violations == []


# ---- outages -------------------------------------------------------------------------------------


def test_a_delivery_gets_202_while_sessiond_is_down_and_the_sweep_takes_its_ticket(
    webhook: Start, sessiond: StartSessiond, redis_server: Redis
) -> None:
    queue = sessiond(scripted_env())
    queue.terminate()
    service, demands = webhook({**reach(queue), "SWEEP_SECONDS": "0.3"}), store(redis_server)
    answer = service.post("issue_comment", payloads.comment())
    assert said(answer) == (202, "accepted") and answer.json()["ticket"] is None
    found = demands.get("IC_1")
    assert found is not None and found.ticket is None and queued(demands) == 1
    queue.start()

    def ticket() -> str | None:
        found = demands.get("IC_1")
        return found.ticket if found is not None else None

    taken = eventually(ticket, 20, "the sweep takes the ticket")
    assert [t["id"] for t in queue.client().view(SESSION)["queue"]] == [taken]


@contextmanager
def hanging() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that accepts connections and never answers. Yields its URL and the connections."""
    links: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:

        def take() -> None:
            while True:
                try:
                    links.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", links
        server.shutdown(socket.SHUT_RDWR)
    for link in links:
        link.close()


def test_a_hanging_sessiond_delays_only_two_deliveries(webhook: Start) -> None:
    with hanging() as (url, links):
        service = webhook({"SESSIOND_URL": url, "WEBHOOK_PROCESSES": "1", "WEBHOOK_TICKET_SECONDS": "0.4"})
        before, times = len(links), []
        for number in range(10):
            began = time.monotonic()
            assert said(service.post("issue_comment", payloads.comment(f"IC_{number}"))) == (202, "accepted")
            times.append(time.monotonic() - began)
    assert len(links) - before == 2
    assert all(0.4 <= one < 2 for one in times[:2]) and sorted(times[2:])[4] < 0.3, times


def test_a_delivery_gets_503_while_redis_is_away_and_is_accepted_later(webhook: Start, redis_server: Redis) -> None:
    service = webhook()
    service.post("issue_comment", payloads.comment("IC_0"))
    redis_server.kill9()
    cases = {
        "issue_comment": payloads.comment(), "pull_request": payloads.load("pull_request.closed"),
        "pull_request_review": payloads.review(state="approved"),
        "issues": payloads.change(payloads.load("issues.labeled"), label__name="sessiond-task"),
    }  # fmt: skip
    for event, payload in cases.items():
        answer = service.post(event, payload, f"delivery of {event}".replace(" ", "-"))
        assert (answer.status, answer.json()["type"]) == (503, "redis-away") and int(answer.headers["Retry-After"]) > 0
    assert service.pool.request("GET", f"{service.url}/readyz").status == 503
    assert service.pool.request("GET", f"{service.url}/healthz").status == 200
    assert service.post("ping", {}).status == 200 and service.post("star", {}).status == 204
    redis_server.start()
    demands = store(redis_server)
    assert not any(demands.delivered(f"delivery-of-{event}") for event in cases)
    words = {"issue_comment": "accepted", "pull_request": "nothing", "pull_request_review": "woken", "issues": "task"}
    for event, payload in cases.items():
        assert said(service.post(event, payload, f"delivery-of-{event}")) == (202, words[event])
    assert service.counted()["issue_comment", "redis-away"] == 1


def test_a_delivery_gets_503_within_githubs_timeout_while_redis_hangs(webhook: Start, redis_server: Redis) -> None:
    service = webhook()
    service.post("issue_comment", payloads.comment("IC_0"))
    redis_server.pause()
    began = time.monotonic()
    answer = service.post("issue_comment", payloads.comment(), "one")
    took = time.monotonic() - began
    redis_server.resume()
    assert answer.status == 503 and took < 9, took
    assert said(service.post("issue_comment", payloads.comment(), "one")) == (202, "accepted")
    assert queued(store(redis_server)) == 2


# ---- kill -9 -------------------------------------------------------------------------------------

CRASHES = [
    ("ingress-before-commit", "before the commit", "accepted", False),
    ("ingress-committed", "between commit and ticket", "duplicate", False),
    ("ingress-ticketed", "between ticket and 202", "duplicate", True),
]


@pytest.mark.parametrize(("point", "when", "again", "ticket"), CRASHES, ids=[c[0] for c in CRASHES])
def test_a_killed_webhook_process_loses_no_delivery(
    webhook: Start, sessiond: StartSessiond, redis_server: Redis, matrix: Callable[..., None],
    point: str, when: str, again: str, ticket: bool,
) -> None:  # fmt: skip
    queue = sessiond(scripted_env())
    service, demands = webhook(reach(queue)), store(redis_server)
    service.hold(point)
    lost: list[Exception] = []

    def deliver() -> None:
        try:
            service.post("issue_comment", payloads.comment(), "one")
        except Exception as error:
            lost.append(error)

    sender = threading.Thread(target=deliver)
    sender.start()
    os.kill(service.wait_until_reached(point), signal.SIGKILL)
    sender.join(10)
    assert len(lost) == 1, "no delivery may be answered with 202"
    service.release(point)
    found = demands.get("IC_1")
    assert (found is not None) == (again == "duplicate")
    assert (found is not None and found.ticket is not None) == ticket
    eventually(service.alive, 10, "another process in its place")
    assert said(service.post("issue_comment", payloads.comment(), "one")) == (202, again)
    found = demands.get("IC_1")
    assert found is not None and found.state is DemandState.OPEN and found.ticket is not None and queued(demands) == 1
    assert [t["id"] for t in queue.client().view(SESSION)["queue"]] == [found.ticket]
    matrix("ingress", victim="webhook process", step=when, redelivered=again, demands=1)


@pytest.mark.parametrize("victim", ["sessiond", "Redis", "Redis and rq's keys"])
@pytest.mark.parametrize(("point", "when"), [c[:2] for c in CRASHES], ids=[c[0] for c in CRASHES])
def test_a_killed_dependency_loses_no_delivery(
    webhook: Start, sessiond: StartSessiond, redis_server: Redis, matrix: Callable[..., None],
    point: str, when: str, victim: str,
) -> None:  # fmt: skip
    queue = sessiond(scripted_env())
    service, demands = webhook({**reach(queue), "SWEEP_SECONDS": "0.5"}), store(redis_server)
    service.hold(point)
    statuses: list[int] = []
    sender = threading.Thread(
        target=lambda: statuses.append(service.post("issue_comment", payloads.comment(), "one").status)
    )
    sender.start()
    service.wait_until_reached(point)
    if victim == "sessiond":
        queue.kill9()
        queue.start()
    else:
        redis_server.kill9()
        redis_server.start()
        if victim != "Redis":
            for name in demands.redis.scan_iter("rq:*"):
                demands.redis.delete(name)
    service.release(point)
    sender.join(20)
    assert statuses[0] in (202, 503)
    if statuses[0] == 503:
        assert said(service.post("issue_comment", payloads.comment(), "one"))[0] == 202

    def whole() -> bool:
        found = demands.get("IC_1")
        return found is not None and found.ticket is not None and demands.jobs.live(found.job)

    eventually(whole, 20, lambda: f"{demands.get('IC_1')} {service.log_text()}")
    found = demands.get("IC_1")
    assert found is not None and found.state is DemandState.OPEN
    assert [t["id"] for t in queue.client().view(SESSION)["queue"]] == [found.ticket]
    matrix("ingress", victim=victim, step=when, answered=statuses[0], demands=1)


# ---- slow clients --------------------------------------------------------------------------------


def test_200_slow_clients_do_not_delay_others(webhook: Start) -> None:
    service = webhook({"WEBHOOK_ARRIVAL_SECONDS": "10"})
    begun = "POST /github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    signed = "X-Hub-Signature-256: sha256=" + "0" * 64 + "\r\n"
    over = threading.Event()
    with ExitStack() as stack:
        links = []
        for number in range(200):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            link.sendall((begun if number % 2 else begun + signed + "Content-Length: 25000000\r\n\r\n").encode())
            links.append(link)

        def trickle() -> None:
            while not over.wait(0.3):
                for number, link in enumerate(links):
                    try:
                        link.sendall(b"X-Slow: 1\r\n" if number % 2 else b" ")
                    except OSError:
                        continue

        sender = threading.Thread(target=trickle)
        sender.start()
        ports = {link.getsockname()[1] for link in links}

        def served() -> int:
            return sum(
                c.status == psutil.CONN_ESTABLISHED and bool(c.raddr) and c.raddr.port in ports
                for p in service.workers() for c in p.net_connections("tcp")
            )  # fmt: skip

        eventually(lambda: served() == 200, 5, "all of the slow ones are being served")
        times = []
        for number in range(40):
            began = time.monotonic()
            assert said(service.post("issue_comment", payloads.comment(f"IC_{number}"))) == (202, "accepted")
            times.append(time.monotonic() - began)
        print(f"with 200 slow clients: median {sorted(times)[20] * 1000:.1f} ms, longest {max(times) * 1000:.1f} ms")
        assert sorted(times)[20] < 0.3 and max(times) < 3.0, times

        eventually(lambda: served() == 0, 25, "however they trickle, their time is bounded")
        over.set()
        sender.join()


def test_bytes_in_flight_are_limited_and_slow_senders_count_only_what_they_sent(webhook: Start) -> None:
    env = {"WEBHOOK_BYTES_IN_FLIGHT": "3000000", "WEBHOOK_PROCESSES": "1", "WEBHOOK_ARRIVAL_SECONDS": "20"}
    service = webhook(env)
    head = (
        "POST /github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20000000\r\n"
        "X-Hub-Signature-256: sha256=" + "0" * 64 + "\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(20):  # 400 MB declared, nothing sent
            link = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            link.sendall(head.encode())
        assert said(service.post("issue_comment", payloads.comment())) == (202, "accepted")
        large = service.post("ping", None, body=b'"' + b"x" * 4_000_000 + b'"')
        assert (large.status, large.json()["type"]) == (503, "busy") and "Retry-After" in large.headers
        assert service.post("ping", None, body=b'"' + b"x" * 2_000_000 + b'"').status == 200
        assert service.post("ping", None, body=b'"' + b"x" * 2_000_000 + b'"').status == 200, (
            "the reserved bytes are released"
        )
