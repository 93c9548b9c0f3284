"""Handles the commands about the lease."""

from typing import Any

from sessiond.lock import events as ev
from sessiond.problems import Problem, no_lease
from sessiond.session.commands import ForceRelease, ReleaseLease, RenewLease
from sessiond.session.context import SessionContext
from sessiond.session.pipeline.runner import Pipeline
from sessiond.store import codec


def renew_lease(pipeline: Pipeline, command: RenewLease) -> dict[str, Any]:
    """Renew the lease for its full ttl. Replies with `{expires_at}`."""
    context = pipeline.context
    lease = context.state.lease_of(command.secret)
    if lease is None:
        raise lease_lost(context, command.secret)
    pipeline.step(ev.ConfirmGrant(lease.fence))
    context.lease_time.renewed()
    return {"expires_at": context.lease_time.expires_at()}


def release_lease(pipeline: Pipeline, command: ReleaseLease) -> None:
    """End the lease, or the ticket of a lease that was lost. A lease that was released stays released."""
    lease = pipeline.context.state.lease_of(command.secret)
    if lease is not None:
        pipeline.step(ev.Release(lease.fence))
        return
    past = _past(pipeline.context, command.secret)
    if past["reason"] != "released":
        pipeline.step(ev.GiveUp(past["ticket"], past["holder"]))
        raise lease_lost(pipeline.context, command.secret)


def force_release(pipeline: Pipeline, command: ForceRelease) -> None:
    """End the lease with this fence."""
    entry: ev.Entry = ("force-release", {"fence": command.fence, "why": command.reason, "by": command.by})
    pipeline.step(ev.ForceRelease(command.fence), ledger=[entry])


def lease_lost(context: SessionContext, secret: str) -> Problem:
    """Return the problem for a secret that is not the current lease's.

    Raises:
        Problem: no lease of this session ever had the secret, or Redis is away.
    """
    reason = str(_past(context, secret)["reason"])
    return Problem("lease-lost", 409, f"The lease has ended: {reason}", reason=reason)


def _past(context: SessionContext, secret: str) -> dict[str, Any]:
    past = context.turns.read(codec.past_suffix(secret))
    if past is None:
        raise no_lease()
    return past
