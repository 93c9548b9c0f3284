"""Tickets of demands: races between a commit, a withdrawal and the ticket, and the circuit breaker."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from sessiond.client import Client, Unavailable
from sessiond_common.jobs.queue import Jobs, connect
from sessiond_webhook.deliveries import intents
from sessiond_webhook.deliveries.authorization import People
from sessiond_webhook.deliveries.mentions import Kind, Trigger
from sessiond_webhook.demands.comment import Person
from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.demands.store import Demands
from sessiond_webhook.demands.tickets import CircuitBreaker, Tickets
from support.servers import Redis, Sessiond, scripted_env
from support.webhook import payloads

SESSION = "codertocat/hello-world"
RULES = intents.Rules(Trigger(Kind.ALL), People(Person(4711, "Bot", "helper[bot]")))


class ClientWithHook(Client):
    """A client that calls `after` when the ticket is taken, before it is recorded."""

    def __init__(self, url: str, key: str, after: Callable[[], object]) -> None:
        super().__init__(url, key)
        self._after = after

    def take(self, *given: Any, **more: Any) -> dict[str, Any]:
        found = super().take(*given, **more)
        self._after()
        return found


class UnreachableClient(Client):
    """A client whose sessiond is unreachable. It counts the calls."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", None)
        self.asked = 0

    def take(self, *given: Any, **more: Any) -> dict[str, Any]:
        self.asked += 1
        raise Unavailable("unreachable", "nobody there", sent=False)

    withdraw = take  # type: ignore[assignment]


@pytest.fixture
def demands(redis_server: Redis) -> Iterator[Demands]:
    connection = connect(redis_server.url)
    yield Demands(connection, Jobs(connection))
    connection.close()


def accepted(demands: Demands, key: str = "IC_1") -> Demand:
    intent = intents.read("issue_comment", payloads.comment(key), RULES)
    assert isinstance(intent, intents.Demanded)
    found = demands.accept(f"d-{key}", intent.comment).demand
    assert found is not None
    return found


def keys(queue: Sessiond) -> list[str]:
    return [ticket["key"] for ticket in queue.client().view(SESSION)["queue"]]


def test_taking_and_withdrawing_a_ticket_can_be_repeated(demands: Demands, sessiond: Callable[..., Sessiond]) -> None:
    queue = sessiond(scripted_env())
    tickets, fresh = Tickets(demands, queue.client("handler")), accepted(demands)
    first = tickets.take(fresh)
    assert first is not None and first.ticket and first.place == 1 and demands.get("IC_1") == first
    again = tickets.take(fresh)
    assert again == first and keys(queue) == ["IC_1"]
    assert tickets.withdraw(first) and keys(queue) == []
    assert tickets.withdraw(first), "410: it is gone, which is what was asked"
    assert tickets.withdraw(replace(first, ticket="tk-" + "0" * 32)), "404: it never was"


@pytest.mark.parametrize("how", ["deleted", "closed"])
def test_a_demand_that_ends_between_its_commit_and_its_ticket_leaves_no_ticket(
    demands: Demands, sessiond: Callable[..., Sessiond], how: str
) -> None:
    queue = sessiond(scripted_env())
    other = Tickets(demands, queue.client("handler"))

    def ends() -> None:
        gone = demands.delete("gone", "IC_1") if how == "deleted" else demands.close("gone", SESSION, 1)
        assert [other.withdraw(one) for one in gone.withdrawn] == [True]

    fresh = accepted(demands)
    tickets = Tickets(demands, ClientWithHook(queue.url, queue.keys["handler"], ends))
    assert tickets.take(fresh) is None
    found = demands.get("IC_1")
    assert found is not None and found.state is DemandState.REFUSED
    assert keys(queue) == [] and demands.withdrawals() == []


def test_a_ticket_that_could_not_be_withdrawn_is_left_for_the_sweep(
    demands: Demands, sessiond: Callable[..., Sessiond]
) -> None:
    queue = sessiond(scripted_env())
    taken = Tickets(demands, queue.client("handler")).take(accepted(demands))
    assert taken is not None
    gone = demands.delete("gone", "IC_1")
    assert not Tickets(demands, UnreachableClient()).withdraw(gone.withdrawn[0])
    assert [one.key for one in demands.withdrawals()] == ["IC_1"]
    assert Tickets(demands, queue.client("handler")).withdraw(demands.withdrawals()[0])
    assert demands.withdrawals() == [] and keys(queue) == []


def test_a_refusal_by_sessiond_is_not_an_outage(demands: Demands, sessiond: Callable[..., Sessiond]) -> None:
    queue = sessiond(scripted_env())
    tickets = Tickets(demands, queue.client("worker"))
    for number in range(4):
        assert tickets.take(accepted(demands, f"IC_{number}")) is None
    assert Tickets(demands, queue.client("handler"), breaker=tickets.breaker).take(accepted(demands, "IC_9"))


def test_an_unreachable_sessiond_is_called_twice_and_then_once_for_each_pause(demands: Demands) -> None:
    now = [100.0]
    unreachable = UnreachableClient()
    tickets = Tickets(demands, unreachable, breaker=CircuitBreaker(2, 5.0, lambda: now[0]))
    fresh = accepted(demands)
    for later, asked in ((0.0, 1), (0.0, 2), (0.0, 2), (4.9, 2), (0.2, 3), (0.0, 3), (5.1, 4)):
        now[0] += later
        assert tickets.take(fresh) is None
        assert unreachable.asked == asked


def test_only_one_caller_tries_after_the_pause_of_the_breaker() -> None:
    now = [0.0]
    breaker = CircuitBreaker(2, 5.0, lambda: now[0])
    assert breaker.allows() and breaker.allows()
    breaker.record_failure()
    assert breaker.allows()
    breaker.record_failure()
    assert not breaker.allows()
    now[0] = 5.0
    assert breaker.allows() and not breaker.allows()
    breaker.record_success()
    assert breaker.allows() and breaker.allows()
