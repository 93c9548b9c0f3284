"""The problem types of the ingress. Pure."""

from collections.abc import Mapping
from typing import ClassVar, Final

from sessiond_common.problems import BaseProblem, ProblemKind

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


class Problem(BaseProblem):
    """A refusal that the sender receives. `type` is a slug of `KINDS`, `detail` one sentence."""

    kinds: ClassVar[Mapping[str, ProblemKind]] = KINDS
