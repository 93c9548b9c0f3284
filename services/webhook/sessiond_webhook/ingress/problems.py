"""Every refusal of the ingress, as RFC 9457 problem details with a stable `type`, like sessiond's. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A type's fixed parts: HTTP status, title, and `Retry-After` in seconds."""

    status: int
    title: str
    retry_after: int | None = None


KINDS: Final[Mapping[str, ProblemKind]] = {
    "bad-request": ProblemKind(400, "The request is not valid"),
    "bad-payload": ProblemKind(400, "The payload cannot be used"),
    "unauthorized": ProblemKind(401, "The body is not signed with our secret"),
    "not-found": ProblemKind(404, "There is no such thing"),
    "method-not-allowed": ProblemKind(405, "The method is not allowed here"),
    "too-slow": ProblemKind(408, "The body did not arrive in time"),
    "too-large": ProblemKind(413, "The body is too large"),
    "unsupported-media-type": ProblemKind(415, "The body must be JSON or a form"),
    "internal": ProblemKind(500, "The service failed"),
    "busy": ProblemKind(503, "Too much is arriving at once", 5),
    "redis-away": ProblemKind(503, "Redis cannot be reached", 5),
    "not-stored": ProblemKind(503, "The delivery could not be made durable", 5),
}


class Problem(Exception):
    """A refusal that the sender is told; `detail` is one sentence. Raises ValueError for a type not in `KINDS`."""

    def __init__(self, type: str, detail: str) -> None:
        if type not in KINDS:
            raise ValueError(f"no problem type {type!r}")
        super().__init__(f"{type}: {detail}")
        self.type, self.detail, self.kind = type, detail, KINDS[type]

    def body(self) -> dict[str, object]:
        """The problem document."""
        return {"type": self.type, "title": self.kind.title, "status": self.kind.status, "detail": self.detail}
