"""The port to the threads that contain comments and their answers.

`github.Github` implements it for GitHub, `outbox.Outbox` for files.
"""

from dataclasses import dataclass
from typing import Protocol

from sessiond_webhook.demands.comment import Comment


@dataclass(frozen=True, slots=True)
class PostedComment:
    """One of the bot's comments, as it is in a thread."""

    id: int
    url: str
    body: str


class RateLimited(Exception):
    """Nothing was done: the account has reached a rate limit and must wait `seconds`.

    `exact` is False if GitHub named no time. Then each further pause in a row must be longer.
    """

    def __init__(self, seconds: float, why: str, *, exact: bool = True) -> None:
        super().__init__(f"{why}, again in {seconds:.0f} s")
        self.seconds, self.why, self.exact = seconds, why, exact


class Unreachable(Exception):
    """Nothing was done: no connection, no login, or a read failed. A later try can succeed."""


class OutcomeUnknown(Exception):
    """A write got no answer, or a 5xx. Whether it was done is unknown."""


class Refused(Exception):
    """GitHub refuses for good: not found, gone, locked, not valid, not allowed. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status, self.message = status, message


class Threads(Protocol):
    """Writes and finds the bot's comments. A call may take seconds and never repeats a request.

    Raises:
        RateLimited, Unreachable, Refused: every call but `account`.
        OutcomeUnknown: `create` and `edit`.
    """

    def account(self, comment: Comment) -> str:
        """Return a short name, without secrets, of the account whose rate limits count here. Sends nothing."""
        ...

    def create(self, comment: Comment, body: str) -> PostedComment:
        """Create a comment in the thread of `comment`."""
        ...

    def edit(self, comment: Comment, id: int, body: str) -> PostedComment:
        """Replace the body of the bot's comment `id` in that thread."""
        ...

    def find(self, comment: Comment, marker: str) -> PostedComment | None:
        """Return the bot's oldest comment in that thread whose body ends with `marker`, or None."""
        ...
