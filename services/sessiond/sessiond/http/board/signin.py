"""Signing in to the board: a key, typed once, becomes a cookie with which one may look at the board, and nothing else.

The cookie is `expires.mac`: no key is in it, and none can be made of it. Only GET /v1/board asks for it; every other
call asks for a bearer key. The mac is over the key's digest, with a secret of this instance that outlives a restart: a
key that leaves the keys file takes its cookies with it.
"""

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from typing import Final

from flask import Request, Response

from sessiond.http.auth import caller_of
from sessiond.http.bodies import json_body, text
from sessiond.http.keys import Caller, Keys, digest_of
from sessiond.http.render import nothing
from sessiond.problems import Problem
from sessiond_common.private_files import write_private

COOKIE: Final = "sessiond_board"
LIFE: Final = 7 * 86_400
_KEY: Final = {"key": text(500)}


def instance_secret(place: Path) -> bytes:
    """The secret in this file, made if there is none; for this user alone."""
    if not place.exists():
        write_private(place, secrets.token_hex(32))
    return place.read_bytes()


class SignIn:
    """The cookies of these keys."""

    def __init__(self, keys: Keys, secret: bytes) -> None:
        self._keys, self._secret = keys, secret

    def sign_in(self, request: Request) -> Response:
        """POST /v1/board/sign-in. That the body must be JSON keeps other sites' forms out."""
        key = json_body(request, _KEY, frozenset(_KEY))["key"].strip()
        if self._keys.find(key) is None:
            raise Problem("unauthorized", 401, "No such key")
        expires = int(time.time()) + LIFE
        response = nothing()
        response.set_cookie(
            COOKIE, f"{expires}.{self._mac(digest_of(key), expires)}", max_age=LIFE, secure=_encrypted(request),
            httponly=True, samesite="Strict", path="/v1/board",
        )  # fmt: skip
        return response

    def sign_out(self, request: Request) -> Response:
        """POST /v1/board/sign-out. The browser forgets the cookie; the service never remembered it."""
        json_body(request, {}, frozenset())
        response = nothing()
        response.delete_cookie(
            COOKIE, secure=_encrypted(request), httponly=True, samesite="Strict", path="/v1/board"
        )  # fmt: skip
        return response

    def viewer(self, request: Request) -> tuple[Caller, float | None]:
        """Who looks, by a bearer key or the cookie, and when (seconds since 1970) the cookie ends. Raises Problem."""
        cookie = request.cookies.get(COOKIE)
        if cookie is None or "Authorization" in request.headers:
            return caller_of(request, self._keys), None
        until, _, mac = cookie.partition(".")
        expires = int(until) if until.isascii() and until.isdigit() and len(until) < 12 else 0
        caller = self._keys.whose(lambda digest: hmac.compare_digest(self._mac(digest, expires).encode(), mac.encode()))
        if caller is None or expires <= time.time():
            raise Problem("unauthorized", 401, "Sign in to the board")
        return caller, float(expires)

    def _mac(self, digest: str, expires: int) -> str:
        return hmac.new(self._secret, f"board {digest} {expires}".encode(), hashlib.sha256).hexdigest()


def _encrypted(request: Request) -> bool:
    """Browsers keep a Secure cookie to themselves on plain HTTP, which is what a board on loopback has."""
    return request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"
