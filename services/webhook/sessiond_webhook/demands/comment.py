"""A comment that asks for an answer, as GitHub sent it. `deliveries.intents` makes it from a payload. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class CommentSource(StrEnum):
    """The kind of a comment. It decides where the answer goes."""

    ISSUE_COMMENT = "issue-comment"
    REVIEW_COMMENT = "review-comment"
    REVIEW = "review"


@dataclass(frozen=True, slots=True)
class Person:
    """A GitHub account. `id` and `type` identify it. A login can be renamed, and another account can take it."""

    id: int
    type: str
    login: str

    def same(self, other: "Person") -> bool:
        """Whether both are the same account. Compare accounts only with this."""
        return (self.id, self.type) == (other.id, other.type)


@dataclass(frozen=True, slots=True)
class Comment:
    """One comment or review. `key` is its node id and also the demand's key. Times are RFC 3339, in UTC."""

    key: str
    source: CommentSource
    session: str
    """`owner/repo` in lower case."""
    repo: str
    """`owner/repo` as GitHub spells it."""
    number: int
    """The number of the issue or pull request."""
    is_pull: bool
    id: int
    """The id of the comment or review in REST paths."""
    author: Person
    association: str
    body: str
    url: str
    title: str
    created_at: str
    updated_at: str
    closed: bool = False
    """Whether the issue or pull request was closed when GitHub sent this."""
    labels: tuple[str, ...] = ()
    review_state: str | None = None
    path: str | None = None
    line: int | None = None
    diff_hunk: str | None = None
    commit: str | None = None
    root: int | None = None
    """The id of the first comment of the review thread. None outside review threads."""
    installation: int | None = None
    """The installation of the app that the delivery names."""

    @property
    def thread(self) -> str:
        """The name of the thread of its answer. Answers of one thread are posted in order."""
        place = f"{self.repo}#{self.number}"
        return f"{place}/{self.root}" if self.root is not None else place
