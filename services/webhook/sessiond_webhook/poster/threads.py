"""The port to where comments and their answers stand: GitHub (github.py), or files without it (outbox.py)."""

from dataclasses import dataclass
from typing import Protocol

from sessiond_webhook.demands.comment import Comment


@dataclass(frozen=True, slots=True)
class Standing:
    """One of our comments as it stands in a thread."""

    id: int
    url: str
    body: str


class Later(Exception):
    """Nothing was done: a rate limit of this account. Nobody asks again for it before `seconds` have passed.

    `told` is False when GitHub named no time; then each further one in a row shall wait longer.
    """

    def __init__(self, seconds: float, why: str, *, told: bool = True) -> None:
        super().__init__(f"{why}, again in {seconds:.0f} s")
        self.seconds, self.why, self.told = seconds, why, told


class Away(Exception):
    """Nothing was done: not reachable, not logged in, or something was read and failed. It may work another time."""


class Unknown(Exception):
    """A write of which nobody can say whether it was done: no answer, or 5xx."""


class Never(Exception):
    """Refused for good: not found, gone, locked, not valid, not allowed. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status, self.message = status, message


class Threads(Protocol):
    """Writes and finds our comments. Each call takes seconds, and retries nothing by itself.

    All raise Later, Away and Never; those that write raise Unknown too.
    """

    def account(self, comment: Comment) -> str:
        """Whose rate limits count here; a short name without secrets. Asks nobody."""
        ...

    def create(self, comment: Comment, body: str) -> Standing:
        """A new comment in the thread of `comment`."""
        ...

    def edit(self, comment: Comment, id: int, body: str) -> Standing:
        """Our comment `id` in that thread reads otherwise now."""
        ...

    def find(self, comment: Comment, marker: str) -> Standing | None:
        """Our own account's comment in that thread whose body ends with `marker`; the oldest, or None."""
        ...
