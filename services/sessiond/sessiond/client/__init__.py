"""The client library of sessiond.

    client = connect()                                   # SESSIOND_URL, SESSIOND_KEY
    with client.lease("octo/hello", kind="handler", key="IC_kwDO1") as lease:
        for event in lease.turn("What does this do?"):
            ...
        # or: lease.turn("…").result().text

It needs only urllib3 and orjson. The lease confirms and renews itself in the background. Inside the block,
`client.lease` of the same session returns the same lease; a lease of another session raises NestedSessions.
"""

from sessiond.client.client import DEFAULT_URL, Client, LeaseOptions, connect, new_holder
from sessiond.client.errors import (
    BadName,
    LeaseLost,
    LeaseSuspended,
    NestedSessions,
    NotOwner,
    ProblemError,
    SessiondError,
    Superseded,
    TicketEnded,
    Timeout,
    Unavailable,
)
from sessiond.client.lease import Lease
from sessiond.client.turns import AgentEvent, Event, Gap, Turn, TurnResult

__all__ = [
    "DEFAULT_URL", "AgentEvent", "BadName", "Client", "Event", "Gap", "Lease", "LeaseLost", "LeaseOptions",
    "LeaseSuspended", "NestedSessions", "NotOwner", "ProblemError", "SessiondError", "Superseded", "TicketEnded",
    "Timeout", "Turn", "TurnResult", "Unavailable", "connect", "new_holder",
]  # fmt: skip
