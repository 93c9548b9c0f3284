"""Authentication and authorization: the key of a request, and the calls that it may make."""

from flask import Request

from sessiond.http.bodies import bad
from sessiond.http.keys import Caller, Keys
from sessiond.lock.rules import Kind
from sessiond.problems import Problem
from sessiond_common.roles import Role


def caller_of(request: Request, keys: Keys) -> Caller:
    """Return the owner of the request's key.

    Raises:
        Problem: `unauthorized` if there is no key, or an unknown one.
    """
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    found = keys.find(key.strip()) if scheme.lower() == "bearer" and key.strip() else None
    if found is None:
        raise Problem("unauthorized", 401, "Send a known key, as Authorization: Bearer KEY")
    return found


def require(allowed: bool, action: str) -> None:
    """Refuse the request unless `allowed`. `action` completes "This key may not ...".

    Raises:
        Problem: `forbidden`.
    """
    if not allowed:
        raise Problem("forbidden", 403, f"This key may not {action}")


def require_change(caller: Caller) -> None:
    """Refuse viewers, which may only read. Raises Problem."""
    require(caller.role is not Role.VIEWER, "change anything")


def require_admin(caller: Caller) -> None:
    """Refuse everybody but admins. Raises Problem."""
    require(caller.role is Role.ADMIN, "do this; it needs the role admin")


def require_kind(caller: Caller, kind: Kind) -> None:
    """Refuse a role that cannot take this kind of ticket. Raises Problem."""
    require(caller.may_take(kind), f"take a {kind.value}'s ticket")


def lease_secret(request: Request) -> str:
    """Return the Lease-Secret header.

    Raises:
        Problem: `bad-request` if it is missing or longer than 200 characters.
    """
    secret = request.headers.get("Lease-Secret", "").strip()
    if not secret or len(secret) > 200:
        raise bad("Lease-Secret", "must be a header of 1 to 200 characters")
    return secret
