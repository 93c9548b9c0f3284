"""Timers on the clock of the process."""

from sessiond.session.timers import Timers
from support.servers import eventually


def test_an_expired_timer_is_returned_once_and_has_no_time_left() -> None:
    """This also holds while its step is being committed, because a view of the lease may be rendered then."""
    timers = Timers[str]()
    timers.update({"lease": 0.01, "hold": 60.0})
    assert eventually(timers.pop_due) == ["lease"]
    assert (timers.left("lease"), timers.left("none")) == (0.0, None)
    assert 50 < (timers.left("hold") or 0) <= 60 and timers.until_next(1.0) == 1.0
    assert timers.pop_due() == []
    timers.restart(keep={"hold": 5.0})
    assert 0 < (timers.left("hold") or 0) <= 5
    assert eventually(timers.pop_due) == ["lease"]


def test_time_without_a_check_does_not_count() -> None:
    """The time left counts from the last check. A later stall or outage does not reduce it."""
    timers = Timers[str]()
    timers.update({"hold": 60.0})
    timers.pop_due()
    eventually(lambda: timers.unchecked_seconds() > 0.2)
    assert (timers.left("hold", timers.checked_at) or 0) >= (timers.left("hold") or 0) + 0.2
    timers.restart()
    assert timers.unchecked_seconds() < 0.2


def test_a_restart_keeps_the_order_in_which_timers_expire() -> None:
    timers = Timers[str]()
    timers.update({"first": 0.01})
    timers.update({"second": 0.01, "first": 0.01})
    timers.restart()
    timers.update({"second": 0.01, "first": 0.01})
    assert eventually(lambda: timers.unchecked_seconds() > 0.1 and timers.pop_due()) == ["first", "second"]
