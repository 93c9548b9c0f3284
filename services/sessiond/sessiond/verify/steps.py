"""Checks at the end of a step, when all entries of its version are read."""

from sessiond.verify.places import WORKER
from sessiond.verify.state import Life, State


def step_over(r: State) -> None:
    """Check the step that was read, once."""
    if r.step.over:
        return
    r.step.over = True
    if r.step.began is not None and not r.step.snapshot:
        r.wrong("single_writer", f"{r.step.began} without a snapshot")
    if r.known:
        for check in (_places, _force, _drain, _turn, _served):
            check(r)


def _places(r: State) -> None:
    for ticket in [t for t in r.places.out if r.lease is None or t != r.lease.ticket]:
        r.wrong("no_place_lost", f"the lease of {ticket} is over, but the ticket neither went back nor ended")
        r.places.remove(ticket)


def _force(r: State) -> None:
    if r.step.forced is not None and r.lease is not None and r.lease.fence == r.step.forced:
        r.wrong("force_release_frees", f"lease {r.lease.fence} is still held after its force-release")
    runs = r.agent.life in (Life.STARTING, Life.STARTED) and not r.agent.stopping
    if r.step.forced_drain and r.drain is not None and runs:
        r.wrong("force_release_frees", f"lease {r.drain.fence} still drains after its force-release")


def _drain(r: State) -> None:
    if r.step.undrained:
        r.wrong("no_grant_while_draining", "a lease ended with a turn or background task open, but does not drain")
    if r.drain is not None and not r.open:
        r.wrong("every_present_ticket_is_served", f"lease {r.drain.fence} drains, but nothing is open")


def _turn(r: State) -> None:
    turn = r.turn
    if turn is None:
        return
    fences = [one.fence for one in (r.lease, r.drain) if one is not None]
    if turn.fence is not None and turn.fence not in fences:
        r.wrong("nothing_outlives_its_lease", f"{turn.id} is open, but its lease {turn.fence} is over")
        r.turn = None
    runs = r.agent.life is Life.STARTED and not r.agent.stopping
    if r.drain is not None and runs and turn.started and turn.interrupted is False:
        r.wrong("nothing_outlives_its_lease", f"{turn.id} runs while its lease drains, but is not interrupted")


def _served(r: State) -> None:
    if r.lease is not None:
        if r.lease.kind == WORKER and r.places.handlers:
            r.wrong("no_worker_while_handler_in_queue", f"the worker's {r.lease.ticket} still holds the lease")
        return
    if r.drain is not None or r.open:
        return
    head = r.places.head()
    if head is not None and r.places.could_have(head):
        lapsed = r.places.lapsed_before(head.score)
        name = "lapsed_bars_nobody" if lapsed else "every_present_ticket_is_served"
        r.wrong(name, f"the lock is free, but {head.ticket} is not granted although it could be")
