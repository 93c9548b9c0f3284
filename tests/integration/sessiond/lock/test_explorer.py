"""The whole exploration of the lock: every reachable state of the large scenarios keeps every invariant."""

import time
from collections.abc import Callable

import pytest

from sessiond.lock.rules import Kind
from support.lock.explorer import Explorer, Scenario
from support.size import DEEP, FULL

H, W = Kind.HANDLER, Kind.WORKER
THREE_AND_ONE = ((H, 3), (H, 5), (H, 5), (W, 5))
TWO_AND_TWO = ((H, 3), (H, 5), (W, 5), (W, 5))
TWO_AND_ONE = ((H, 3), (H, 5), (W, 5))
PLACES = {"supersede": 1, "lapse": 1, "loss": 1}
OTHERS = {"pause": 1, "tasks": 1}
PAIRS = 2 if DEEP else 1
AT_ONCE = 5 if DEEP else 2
SCENARIOS = {
    "3 handlers of 2 priorities, 1 worker": Scenario(THREE_AND_ONE, PLACES, together=PAIRS),
    "3 handlers of 2 priorities, 1 worker, pause or tasks": Scenario(THREE_AND_ONE, OTHERS),
    "2 handlers of 2 priorities, 2 workers": Scenario(TWO_AND_TWO, PLACES, together=PAIRS),
    "2 handlers of 2 priorities, 2 workers, pause or tasks": Scenario(TWO_AND_TWO, OTHERS),
    "2 handlers, 1 worker, every fault once": Scenario(TWO_AND_ONE, PLACES | OTHERS, together=AT_ONCE),
    "1 handler, 1 worker, faults again and again": Scenario(
        ((H, 5), (W, 5)), {"supersede": 2, "pause": 2, "lapse": 2, "loss": 6, "tasks": 1}, together=13
    ),
}


@pytest.mark.long
@pytest.mark.skipif(FULL and not DEEP, reason="`make test` explores as much; DEEP=1 more")
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_reachable_state_keeps_every_invariant(name: str, figures: Callable[[str], None]) -> None:
    """Explore every state that a scenario can reach, breadth first, and check each step from each state.

    In any state, any of these events may come next, any number of times: an untaken ticket is taken; a ticket's
    holder waits; a wait is hung up; a ticket is withdrawn (with or without a holder) or grows too old; a lease is
    confirmed, released, force-released, given up after its loss, or reaches `max_hold`; a turn is accepted or
    closed, or its agent is reaped (a drain that failed); a drain is forced; `head_wait` expires; the owner restarts.

    Faults that leave a lasting mark are counted: `supersede` (another holder's first wait), `lapse`, `loss` (a lease
    expires or is not confirmed), `pause` (a wait reaches its time limit), `tasks` (background tasks start). With four
    tickets one fault happens at a time; the deep form combines any two of the first three, each at most once. With
    three tickets all five happen once each, two of them in the quick form. With two tickets several of each
    kind happen, so that a ticket is lost three times.

    Not explored: two losses, two lapses or two supersessions with four tickets, and a third holder of one ticket.
    """
    explorer, begun = Explorer(SCENARIOS[name]), time.process_time()
    explorer.run()
    took = time.process_time() - begun
    figures(f"{explorer.states} states, {explorer.transitions} transitions, {took:.1f} s")
    assert explorer.states > 5_000
