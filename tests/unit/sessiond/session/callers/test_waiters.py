"""Waiters: at most one for each ticket, and one answer for each."""

from typing import Any

import pytest

from sessiond.problems import Problem, away, superseded
from sessiond.session.callers.waiters import Waiter, Waiters


def waiter(ticket: str = "tk-1", holder: str = "h") -> Waiter:
    return Waiter(ticket, holder, lambda waiter, hung_up: waiter.reply({"hung_up": hung_up}))


def test_adding_a_waiter_returns_the_one_that_it_replaces() -> None:
    waiters, first, second = Waiters(), waiter(), waiter()
    assert waiters.add(first) is None and waiters.add(second) is first
    assert not waiters.remove(first) and waiters.has("tk-1")
    assert waiters.remove(second) and not waiters.has("tk-1")
    assert not waiters.remove(second)


def test_only_the_first_answer_of_a_waiter_counts() -> None:
    waiters, one = Waiters(), waiter()
    waiters.add(one)
    waiters.reply("tk-1", {"state": "granted"})
    one.refuse(away())
    one.reply({"state": "waiting"})
    assert one.answer(0) == {"state": "granted"} and not waiters.has("tk-1")


def test_all_waiters_are_refused_and_removed() -> None:
    waiters, both = Waiters(), [waiter("tk-1"), waiter("tk-2")]
    for one in both:
        waiters.add(one)
    waiters.refuse("tk-1", superseded())
    waiters.refuse_all(away())
    for one, problem in zip(both, ("superseded", "redis-away"), strict=True):
        with pytest.raises(Problem, match=problem):
            one.answer(0)
    assert not waiters.has("tk-2")


def test_only_the_loop_ends_a_wait_that_has_timed_out() -> None:
    assert waiter().answer(0.01) == {"hung_up": False}
    left: list[tuple[Any, bool]] = []
    gone = Waiter("tk-1", "h", lambda waiter, hung_up: left.append((waiter, hung_up)))
    gone.hang_up()
    gone.reply({})
    gone.hang_up()
    assert left == [(gone, True)]
