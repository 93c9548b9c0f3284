"""Sign-in to the board: a key is exchanged for a cookie that can read the board and do nothing else.

The cookie is `expires.mac`. It does not contain the key, and the key cannot be computed from it. Only GET /v1/board
accepts it; every other call needs a bearer key. The MAC covers the key's digest, with a secret of this instance that
survives restarts. Removing a key from the keys file therefore invalidates its cookies.
"""

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from typing import Final

from flask import Request, Response

from sessiond.http.auth import caller_of
from sessiond.http.bodies import NoMembers, SignInKey, json_body
from sessiond.http.keys import Caller, Keys, digest_of
from sessiond.http.render import no_content
from sessiond.problems import Problem
from sessiond_common.private_files import write_private

COOKIE: Final = "sessiond_board"
LIFE: Final = 7 * 86_400
"""Seconds until a cookie expires."""


def instance_secret(place: Path) -> bytes:
    """Return the secret in this file. Create the file if it is missing, for this user only."""
    if not place.exists():
        write_private(place, secrets.token_hex(32))
    return place.read_bytes()


class SignIn:
    """Creates, deletes and checks the cookies of these keys."""

    def __init__(self, keys: Keys, secret: bytes) -> None:
        self._keys, self._secret = keys, secret

    def sign_in(self, request: Request) -> Response:
        """POST /v1/board/sign-in. The body must be JSON, which forms of other sites cannot send."""
        key = json_body(request, SignInKey).key.strip()
        if self._keys.find(key) is None:
            raise Problem("unauthorized", 401, "This key is unknown")
        expires = int(time.time()) + LIFE
        response = no_content()
        response.set_cookie(
            COOKIE, f"{expires}.{self._mac(digest_of(key), expires)}", max_age=LIFE, secure=_encrypted(request),
            httponly=True, samesite="Strict", path="/v1/board",
        )  # fmt: skip
        return response

    def sign_out(self, request: Request) -> Response:
        """POST /v1/board/sign-out. The browser deletes the cookie; the service stores none."""
        json_body(request, NoMembers)
        response = no_content()
        response.delete_cookie(
            COOKIE, secure=_encrypted(request), httponly=True, samesite="Strict", path="/v1/board"
        )  # fmt: skip
        return response

    def viewer(self, request: Request) -> tuple[Caller, float | None]:
        """Return the caller, by its bearer key or its cookie, and when the cookie expires (seconds since 1970).

        Raises:
            Problem: `unauthorized`.
        """
        cookie = request.cookies.get(COOKIE)
        if cookie is None or "Authorization" in request.headers:
            return caller_of(request, self._keys), None
        until, _, mac = cookie.partition(".")
        expires = int(until) if until.isascii() and until.isdigit() and len(until) < 12 else 0
        caller = self._keys.find_by(
            lambda digest: hmac.compare_digest(self._mac(digest, expires).encode(), mac.encode())
        )
        if caller is None or expires <= time.time():
            raise Problem("unauthorized", 401, "Sign in to the board, or send a key")
        return caller, float(expires)

    def _mac(self, digest: str, expires: int) -> str:
        return hmac.new(self._secret, f"board {digest} {expires}".encode(), hashlib.sha256).hexdigest()


def _encrypted(request: Request) -> bool:
    """Whether the browser uses HTTPS. On plain HTTP, as on loopback, it would not send a Secure cookie back."""
    return request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"
