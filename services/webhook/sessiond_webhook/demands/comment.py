"""A comment that wants an answer, as GitHub sent it. Pure values; `events.py` makes them from payloads."""

from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """Which of the three kinds of comment it is; it decides where the answer goes."""

    ISSUE_COMMENT = "issue-comment"
    REVIEW_COMMENT = "review-comment"
    REVIEW = "review"


@dataclass(frozen=True, slots=True)
class Person:
    """A GitHub account. Only `id` and `type` identify it: logins are renamed and taken again by others."""

    id: int
    type: str
    login: str

    def same(self, other: "Person") -> bool:
        """The one predicate by which accounts are compared."""
        return (self.id, self.type) == (other.id, other.type)


@dataclass(frozen=True, slots=True)
class Comment:
    """One comment or review. `key` is its node id, the demand's key; times are RFC 3339 as GitHub gives them."""

    key: str
    source: Source
    session: str
    """`owner/repo` in lower case."""
    repo: str
    """`owner/repo` as GitHub spells it."""
    number: int
    """Of the issue or pull request."""
    is_pull: bool
    id: int
    """The comment's or review's id in REST paths."""
    author: Person
    association: str
    body: str
    url: str
    title: str
    created_at: str
    updated_at: str
    closed: bool = False
    """Whether the issue or pull request was closed when this was sent."""
    labels: tuple[str, ...] = ()
    review_state: str | None = None
    path: str | None = None
    line: int | None = None
    diff_hunk: str | None = None
    commit: str | None = None
    root: int | None = None
    """The id of the review thread's first comment (its own, if it is the first)."""
    installation: int | None = None
    """The app's installation that the delivery came for."""

    @property
    def thread(self) -> str:
        """Where its answer stands among others; answers of one thread are posted in order."""
        place = f"{self.repo}#{self.number}"
        return f"{place}/{self.root}" if self.root is not None else place
