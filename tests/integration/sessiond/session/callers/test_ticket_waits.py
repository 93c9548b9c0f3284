"""Holders that die, run twice or return: their places in the queue and the lock afterwards."""

from collections.abc import Callable
from typing import Any

import pytest

from sessiond.client import Client, LeaseLost, Superseded, TicketEnded, Unavailable
from sessiond.verify import verify
from support.servers import Caller, Sessiond, eventually, scripted_env
from support.session.calls import SESSION, events, lease_call

Start = Callable[..., Sessiond]
StartCaller = Callable[..., Caller]


def wait(client: Client, ticket: str, holder: str, seconds: float) -> dict[str, Any]:
    body = {"holder": holder, "wait": seconds}
    found: dict[str, Any] = client.transport.call("POST", f"/tickets/{ticket}/wait", session=SESSION, body=body).body
    return found


def test_a_killed_handler_loses_its_grant_after_the_claim_window(sessiond: Start, caller: StartCaller) -> None:
    service = sessiond(scripted_env(claim_window=0.4, head_wait=0.3))
    client = service.client()
    first = client.take(SESSION, key="first")
    granted = wait(client, first["id"], "raw-holder", 1)  # The grant is never claimed, because its process is gone.
    assert granted["state"] == "granted"
    second = caller(service)
    second.do(key="second")
    second.wait_for("granted")
    assert [e["reason"] for e in events(client, "ended")][:1] == ["unclaimed"]
    place = client.ticket(SESSION, first["id"])
    assert (place["state"], place["passed_over"]) == ("queued", True)
    assert verify(client.ledger(SESSION)).violations == []


def test_the_ticket_of_a_killed_holder_keeps_its_place_for_the_retry(sessiond: Start, caller: StartCaller) -> None:
    service = sessiond(scripted_env(lease_ttl=0.8, head_wait=0.3))
    client = service.client()
    dead, other = caller(service), caller(service)
    dead.do(key="dead", hold=60)
    dead.wait_for("granted")
    other.do(key="other")
    eventually(lambda: len(client.view(SESSION)["queue"]) == 1)
    dead.kill9()
    other.wait_for("granted")
    assert [e["reason"] for e in events(client, "ended")][:1] == ["expired"]
    retry = caller(service)
    retry.do(key="dead")
    retry.wait_for("done")
    (back,) = events(client, "back")
    grants = [e["score"] for e in events(client, "granted")]
    assert back["score"] == grants[0] == grants[2]
    assert verify(client.ledger(SESSION)).violations == []


def test_a_second_run_with_the_same_key_waits_for_the_first_and_gets_its_place(sessiond: Start) -> None:
    service = sessiond(scripted_env(claim_window=0.5))
    client = service.client()
    ticket = client.take(SESSION, key="k")["id"]
    assert client.take(SESSION, key="k")["id"] == ticket
    first = wait(client, ticket, "run-1", 1)
    second = wait(client, ticket, "run-2", 0)
    assert (second["state"], second["ahead"][0]["why"]) == ("waiting", "held-by-another")
    with pytest.raises(Superseded):
        wait(client, ticket, "run-1", 0)
    granted = wait(client, ticket, "run-2", 5)  # the first holder never claims its grant
    assert granted["state"] == "granted"
    with pytest.raises(LeaseLost, match="unclaimed"):
        lease_call(client, "POST", "/lease/renew", first["lease"]["secret"])
    with pytest.raises(LeaseLost):
        lease_call(client, "DELETE", "/lease", first["lease"]["secret"])
    lease_call(client, "POST", "/lease/renew", granted["lease"]["secret"])
    lease_call(client, "DELETE", "/lease", granted["lease"]["secret"])
    lease_call(client, "DELETE", "/lease", granted["lease"]["secret"])
    with pytest.raises(TicketEnded, match="released"):
        wait(client, ticket, "run-2", 0)


def test_a_superseded_wait_is_answered_at_once_and_stays_superseded(sessiond: Start, caller: StartCaller) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    with client.lease(SESSION, key="holder"):
        old = caller(service)
        old.do(key="k", holder="old")
        eventually(lambda: any(t["holder"] == "old" for t in client.view(SESSION)["queue"]))
        ticket = client.take(SESSION, key="k")["id"]
        assert wait(client, ticket, "new", 0)["state"] == "waiting"
        with pytest.raises(AssertionError, match="Superseded"):
            old.wait_for("granted")
        with pytest.raises(Superseded):
            wait(client, ticket, "old", 0)
        with pytest.raises(Superseded):
            client.withdraw(SESSION, ticket, "old")
    assert wait(client, ticket, "new", 2)["state"] == "granted"


def test_the_third_loss_in_a_row_ends_the_ticket(sessiond: Start) -> None:
    service = sessiond(scripted_env(claim_window=0.2))
    client = service.client()
    ticket = client.take(SESSION, key="k")["id"]
    for number in range(3):
        assert wait(client, ticket, "h", 5)["state"] == "granted"
        eventually(lambda number=number: len(events(client, "ended")) == number + 1)
    with pytest.raises(TicketEnded, match="lost-thrice"):
        wait(client, ticket, "h", 0)


def test_withdrawing_a_ticket_ends_its_lease(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    ticket = client.take(SESSION, key="k")["id"]
    secret = wait(client, ticket, "h", 1)["lease"]["secret"]
    client.withdraw(SESSION, ticket)
    with pytest.raises(LeaseLost, match="withdrawn"):
        lease_call(client, "POST", "/lease/renew", secret)
    with pytest.raises(TicketEnded, match="withdrawn"):
        wait(client, ticket, "h", 0)


def test_force_release_names_a_fence_and_never_touches_the_next_holder(sessiond: Start) -> None:
    from sessiond.client import ProblemError

    service = sessiond(scripted_env())
    client = service.client()
    first, second = client.take(SESSION, key="1")["id"], client.take(SESSION, key="2")["id"]
    fence = wait(client, first, "h1", 1)["lease"]["fence"]
    client.force_release(SESSION, fence, "stuck")
    granted = wait(client, second, "h2", 2)
    with pytest.raises(ProblemError, match="not-held"):
        client.force_release(SESSION, fence, "again")
    assert client.view(SESSION)["holder"]["fence"] == granted["lease"]["fence"]
    with pytest.raises(TicketEnded, match="forced"):
        wait(client, first, "h1", 0)


def test_a_stopping_service_answers_its_waiters_with_503(sessiond: Start) -> None:
    import threading

    service = sessiond(scripted_env())
    client = service.client()
    ticket = client.take(SESSION, key="k")["id"]
    client.take(SESSION, key="ahead", priority=0)
    heard: list[Exception] = []

    def parked() -> None:
        try:
            wait(service.client(), ticket, "h", 10)
        except Unavailable as error:
            heard.append(error)

    with client.lease(SESSION, key="ahead", priority=0) as lease:
        lease.abandon()
        thread = threading.Thread(target=parked)
        thread.start()
        eventually(lambda: client.ticket(SESSION, ticket)["present"])
        service.terminate()
        thread.join(10)
    assert [(type(e), e.type, e.retry_after is not None) for e in heard] == [(Unavailable, "stopping", True)]
