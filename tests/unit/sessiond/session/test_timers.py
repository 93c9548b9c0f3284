"""Deadlines, on the process's own clock."""

from sessiond.session.timers import Deadlines
from support.servers import eventually


def test_one_that_has_run_out_is_given_once_and_has_nothing_left() -> None:
    """Also while the step that it causes is being committed: a view of the lease may be asked for just then."""
    deadlines = Deadlines()
    deadlines.want({"lease": 0.01, "hold": 60.0})
    assert eventually(deadlines.pop_due) == ["lease"]
    assert (deadlines.left("lease"), deadlines.left("none")) == (0.0, None)
    assert 50 < (deadlines.left("hold") or 0) <= 60 and deadlines.until_next(1.0) == 1.0
    assert deadlines.pop_due() == []
    deadlines.restart(keep={"hold": 5.0})
    assert 0 < (deadlines.left("hold") or 0) <= 5
    assert eventually(deadlines.pop_due) == ["lease"]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """What a timer had left is asked as of the last look; a stall or an outage since then takes nothing of it."""
    deadlines = Deadlines()
    deadlines.want({"hold": 60.0})
    deadlines.pop_due()
    eventually(lambda: deadlines.unseen() > 0.2)
    assert (deadlines.left("hold", deadlines.seen) or 0) >= (deadlines.left("hold") or 0) + 0.2
    deadlines.restart()
    assert deadlines.unseen() < 0.2


def test_what_would_have_run_out_first_still_does_after_a_restart() -> None:
    deadlines = Deadlines()
    deadlines.want({"first": 0.01})
    deadlines.want({"second": 0.01, "first": 0.01})
    deadlines.restart()
    deadlines.want({"second": 0.01, "first": 0.01})
    assert eventually(lambda: deadlines.unseen() > 0.1 and deadlines.pop_due()) == ["first", "second"]
