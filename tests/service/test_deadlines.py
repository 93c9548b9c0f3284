"""The session's deadlines: what is told about one that ran out just now."""

import time

from sessiond.deadlines import Deadlines


def test_a_deadline_that_was_given_and_not_yet_acted_upon_has_nothing_left() -> None:
    deadlines = Deadlines()
    deadlines.want({"lease": 0.001, "other": 60.0})
    time.sleep(0.002)
    assert deadlines.pop_due() == ["lease"]
    assert deadlines.left("lease") == 0.0, "whoever looks between the timer and its step is answered"
    assert 59 < (deadlines.left("other") or 0) <= 60
    assert deadlines.left("none") is None
    assert deadlines.pop_due() == [], "given once"
