"""GitHub's signature of a delivery: `X-Hub-Signature-256: sha256=` and the HMAC-SHA-256 of the raw body, in hex. Pure.

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
    """Return the value of the header for this body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def well_formed(header: str | None) -> bool:
    """Whether the header has the form of a signature. Otherwise nothing needs to be computed."""
    return header is not None and _FORM.fullmatch(header) is not None


def valid(secrets: Sequence[str], header: str | None, body: bytes) -> bool:
    """Whether one of the secrets signed this body. Without a secret the result is False.

    Each wrong signature takes the same time. All secrets are tried, so the time does not show which one is in use.
    """
    if header is None or not well_formed(header):
        return False
    return sum(hmac.compare_digest(sign(secret, body), header) for secret in secrets if secret) > 0
