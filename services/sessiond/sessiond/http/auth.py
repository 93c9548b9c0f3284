"""Which key was shown, and whether it may do this."""

from flask import Request

from sessiond.http.bodies import bad
from sessiond.http.keys import Caller, Keys
from sessiond.lock.rules import Kind
from sessiond.problems import Problem
from sessiond_common.roles import Role


def caller_of(request: Request, keys: Keys) -> Caller:
    """Raises Problem unauthorized."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    found = keys.find(key.strip()) if scheme.lower() == "bearer" and key.strip() else None
    if found is None:
        raise Problem("unauthorized", 401, "Show a key: Authorization: Bearer KEY")
    return found


def require(allowed: bool, what: str) -> None:
    """Raises Problem forbidden."""
    if not allowed:
        raise Problem("forbidden", 403, f"This key may not {what}")


def require_change(caller: Caller) -> None:
    """A viewer only looks."""
    require(caller.role is not Role.VIEWER, "change anything")


def require_admin(caller: Caller) -> None:
    """Operators only."""
    require(caller.role is Role.ADMIN, "do what only the role admin may")


def require_kind(caller: Caller, kind: Kind) -> None:
    """The role decides which kinds of ticket one may take."""
    require(caller.may_take(kind), f"take a {kind.value}'s ticket")


def lease_secret(request: Request) -> str:
    """The Lease-Secret header. Raises Problem bad-request."""
    secret = request.headers.get("Lease-Secret", "").strip()
    if not secret or len(secret) > 200:
        raise bad("Lease-Secret", "the header is missing")
    return secret
