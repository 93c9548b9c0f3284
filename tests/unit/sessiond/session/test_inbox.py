"""The inbox: items that it refuses or keeps while Redis is away, and one answer for each caller."""

import gevent
import pytest

from sessiond.agent import state as st
from sessiond.problems import Problem, away, stopping
from sessiond.session.agent.items import AgentEvent
from sessiond.session.callers.waiters import Waiter
from sessiond.session.commands import ReleaseLease, RenewLease, StartTurn, TurnRequest, WaitTicket
from sessiond.session.inbox import Inbox, Request


def taken(inbox: Inbox) -> Request[object]:
    item = inbox.take(0)
    assert isinstance(item, Request)
    return item


def test_a_reply_goes_to_the_caller_that_asked() -> None:
    inbox = Inbox()
    renews = gevent.spawn(inbox.ask, RenewLease("s"))
    gevent.sleep(0)
    request = taken(inbox)
    assert request.command == RenewLease("s")
    request.reply({"expires_at": "then"})
    assert renews.get(timeout=5) == {"expires_at": "then"}


def test_only_a_turn_without_a_key_waits_out_an_outage() -> None:
    assert StartTurn("s", TurnRequest("p")).patient
    assert not StartTurn("s", TurnRequest("p", key="k")).patient
    assert not ReleaseLease("s").patient


@pytest.mark.parametrize("patient", [True, False])
def test_an_outage_refuses_all_requests_except_a_patient_one_in_progress(patient: bool) -> None:
    inbox = Inbox()
    served = inbox.post(StartTurn("s", TurnRequest("p", key=None if patient else "k")))
    waiting = inbox.post(StartTurn("s", TurnRequest("p")))
    event = AgentEvent(1, st.Spawned())
    inbox.put(event)
    inbox.serving = taken(inbox)
    inbox.refuse_requests(away())
    assert (served.answered, inbox.serving_answered) == (not patient, not patient)
    with pytest.raises(Problem, match="redis-away"):
        waiting.result()
    assert inbox.take(0) is event and inbox.take(0) is None


def test_a_refused_wait_refuses_its_waiter() -> None:
    waiter = Waiter("tk-1", "h", lambda waiter, hung_up: None)
    request = Inbox().post(WaitTicket(waiter))
    request.refuse(away())
    with pytest.raises(Problem, match="redis-away"):
        waiter.answer(0)


def test_a_closed_inbox_and_one_without_redis_take_no_command_from_callers() -> None:
    inbox = Inbox()
    inbox.away = True
    with pytest.raises(Problem, match="redis-away"):
        inbox.ask(ReleaseLease("s"))
    inbox.away = False
    inbox.close(stopping())
    inbox.close(away())
    with pytest.raises(Problem, match="stopping"):
        inbox.ask(ReleaseLease("s"))
    inbox.post(ReleaseLease("s"))  # the session itself may still post commands
    assert inbox.take(0) is None and taken(inbox).command == ReleaseLease("s")


def test_the_oldest_request_is_found_behind_lines_of_the_agent() -> None:
    inbox = Inbox()
    inbox.put(AgentEvent(1, st.Spawned()))
    assert inbox.oldest() is None
    first = inbox.post(ReleaseLease("s"))
    inbox.post(ReleaseLease("s"))
    assert inbox.oldest() == first.arrived_at


def test_a_doubt_wakes_the_loop_unless_redis_is_known_to_be_away() -> None:
    inbox = Inbox()
    inbox.away = True
    inbox.doubt()
    assert not inbox.doubted
    inbox.away = False
    inbox.doubt()
    assert inbox.doubted
