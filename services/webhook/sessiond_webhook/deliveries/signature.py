"""GitHub's signature of a delivery: `X-Hub-Signature-256: sha256=` HMAC-SHA-256 of the raw body, in hex. Pure.

Source: docs.github.com, "Validating webhook deliveries".
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

HEADER: Final = "X-Hub-Signature-256"
_FORM: Final = re.compile(r"sha256=[0-9a-f]{64}")


def sign(secret: str, body: bytes) -> str:
    """The header's value for this body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def well_formed(header: str | None) -> bool:
    """Whether the header could be a signature at all; what is not need not be computed."""
    return header is not None and _FORM.fullmatch(header) is not None


def valid(secrets: Sequence[str], header: str | None, body: bytes) -> bool:
    """Whether one of the secrets signed this body. Takes as long for every wrong signature; no secret: False.

    All secrets are tried, so that the time does not tell which one is in use.
    """
    if header is None or not well_formed(header):
        return False
    return sum(hmac.compare_digest(sign(secret, body), header) for secret in secrets if secret) > 0
