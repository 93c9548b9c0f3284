"""Problem details (RFC 9457): the answer of every HTTP service of this project when it refuses a request.

Pure: knows no web framework. Each service defines its own table of types.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """The fixed parts of a type: HTTP status, title, and the default `Retry-After` in seconds."""

    status: int
    title: str
    retry_after: float | None = None


class BaseProblem(Exception):
    """A refusal. A service's subclass sets `kinds`, its table of types.

    `type` is a slug of `kinds`, `detail` one sentence for people, `retry_after` seconds (default: the kind's). `extra`
    are further members of the body, such as `reason`; a member that is None is left out.

    Raises:
        ValueError: `type` is not in `kinds`, which is a mistake in the code.
    """

    kinds: ClassVar[Mapping[str, ProblemKind]] = {}

    def __init__(self, type: str, detail: str, *, retry_after: float | None = None, **extra: object) -> None:
        if type not in self.kinds:
            raise ValueError(f"no problem type {type!r}")
        super().__init__(f"{type}: {detail}")
        self.type = type
        self.kind = self.kinds[type]
        self.detail = detail
        self.retry_after = self.kind.retry_after if retry_after is None else retry_after
        self.extra = {name: value for name, value in extra.items() if value is not None}

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.kind.status

    def body(self) -> dict[str, object]:
        """The problem document: type, title, status, detail, then the extra members."""
        fixed = {"type": self.type, "title": self.kind.title, "status": self.status, "detail": self.detail}
        return {**fixed, **self.extra}

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, at least 1, where a later attempt may succeed."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
