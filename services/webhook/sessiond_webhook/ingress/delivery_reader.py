"""Reads a delivery from a request: checks its form and its signature, then reads its intent."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

import orjson
from flask import Request

from sessiond_webhook.deliveries import intents, signature
from sessiond_webhook.deliveries.payload import BadPayload
from sessiond_webhook.ingress.body import BodyReader, check_declared
from sessiond_webhook.ingress.problems import Problem

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
MAX_HEADER: Final = 200
"""Characters of a header that names an event or a delivery."""
_VISIBLE: Final = frozenset(map(chr, range(0x21, 0x7F)))


@dataclass(slots=True)
class RequestRecord:
    """The values of one request that are counted and logged."""

    event: str | None = None
    delivery: str | None = None
    outcome: str = "internal"
    reason: str | None = None
    demand: str | None = None
    session: str | None = None
    ticket: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryReader:
    """Reads deliveries. A delivery is accepted if one of the `secrets` signed it."""

    secrets: tuple[str, ...]
    rules: intents.Rules
    bodies: BodyReader

    def read(self, request: Request, record: RequestRecord) -> tuple[str, intents.Intent]:
        """Return the id of the delivery and its intent. The checks are in this order: size, type, signature, form.

        Raises:
            Problem: the request is refused.
        """
        environ, header = request.environ, request.headers.get(signature.HEADER)
        check_declared(environ)
        if request.mimetype not in (JSON, FORM):
            raise Problem("unsupported-media-type", f"The body must be {JSON} or {FORM}")
        with self.bodies.body(environ, keep=signature.well_formed(header)) as body:
            if not signature.valid(self.secrets, header, body):
                raise Problem("unauthorized", f"{signature.HEADER} must be the body's HMAC-SHA-256 with our secret")
            event = _header_word(request, "X-GitHub-Event")
            delivery = record.delivery = _header_word(request, "X-GitHub-Delivery")
            payload = _parse_form(body) if request.mimetype == FORM else _parse_json(body)
        try:
            return delivery, intents.read(event, payload, self.rules)
        except BadPayload as error:
            raise Problem("bad-payload", str(error)) from error


def _header_word(request: Request, header: str) -> str:
    found = request.headers.get(header, "")
    if not 0 < len(found) <= MAX_HEADER or not _VISIBLE.issuperset(found):
        raise Problem("bad-request", f"{header} must have 1 to {MAX_HEADER} visible characters")
    return found


def _parse_form(body: bytes) -> object:
    """Return the JSON in the field `payload` of a form."""
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError as error:
        raise Problem("bad-request", "The body is not a form") from error
    found = [value for name, value in fields if name == "payload"]
    if len(found) != 1:
        raise Problem("bad-request", "The form must have one field named payload")
    return _parse_json(found[0])


def _parse_json(text: bytes | str) -> object:
    try:
        found: object = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise Problem("bad-request", f"The payload is not JSON: {error}") from error
    return found
