"""Passes expired timers to their machines."""

import time

import structlog

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.session.pipeline.runner import Pipeline
from sessiond.session.timers import STALL_SECONDS, SessionTimer

log = structlog.get_logger("sessiond.session")


def fire_due_timers(pipeline: Pipeline) -> None:
    """Make a step for each expired timer.

    A lock timer waits for the requests that arrived before it expired. After a stall of the process, every timer has
    its full time again.
    """
    context = pipeline.context
    stalled = context.timers.unchecked_seconds()
    if stalled > STALL_SECONDS:
        log.warning("the process stalled; every timer starts again", session=context.name, seconds=round(stalled, 1))
        context.lease_time.restart(context.lease_time.hold_left())

    def oldest_request(timer: SessionTimer) -> float | None:
        return context.inbox.oldest() if timer[0] == "lock" else None

    for timer in context.timers.pop_due(oldest_request):
        if context.timers.left(timer) is None:
            continue  # the step of an earlier timer made this one unnecessary
        pipeline.cause = time.monotonic()
        pipeline.step(ev.Due(timer[1]) if timer[0] == "lock" else st.Due(*timer[1]))
