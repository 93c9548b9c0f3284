"""Demands for tests of the poster: comments on the loopback GitHub, and changes that a handler makes to records."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sessiond_common.clock import now_text
from sessiond_common.jobs.queue import Jobs, connect
from sessiond_webhook.demands import machine
from sessiond_webhook.demands.comment import Comment, CommentSource, Person
from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.demands.outbox_queue import Posts, sweep_posts
from sessiond_webhook.demands.store import Demands
from support.jobs.jobprocess import JobProcess
from support.servers import Github, eventually

MONA = Person(77, "User", "mona")


TIMES = {
    "POSTER_DEADLINE": "1", "POSTER_LAG": "0.5", "POSTER_PACE": "0.01", "POSTER_BACKOFF": "0.2", "POSTER_CLAIM": "3",
}  # fmt: skip


class Poster(JobProcess):
    """A real poster: `python -m sessiond_webhook.poster`, with short times."""

    def __init__(self, redis_url: str, place: Path, env: Mapping[str, str] | None = None) -> None:
        whole = {"REDIS_URL": redis_url, "SESSIOND_STATE_DIR": str(place), **TIMES, **(env or {})}
        super().__init__("sessiond_webhook.poster", place, whole)
        eventually(lambda: "taking jobs" in self.log(), 20, "a poster that takes jobs")


def a_comment(
    key: str = "IC_1", number: int = 1, source: CommentSource = CommentSource.ISSUE_COMMENT, **more: Any
) -> Comment:
    given: dict[str, Any] = {
        "id": 501, "is_pull": number != 1, "author": MONA, "association": "MEMBER", "body": "What is this?",
        "url": f"https://github.test/c/{key}", "title": "A title", "root": None, "installation": None,
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), **more,
    }  # fmt: skip
    repo = given.pop("repo", Github.REPO)
    return Comment(
        key=key, source=source, session=repo.lower(), repo=repo, number=number, updated_at=given["created_at"], **given
    )


@dataclass
class DemandRecords:
    """Demands on a real Redis. Its methods make the changes of the ingress, the handler and the sweeper."""

    url: str
    demands: Demands = field(init=False)

    def __post_init__(self) -> None:
        connection = connect(self.url)
        self.demands = Demands(connection, Jobs(connection))
        self.posts = Posts(self.demands)

    def ask(self, comment: Comment, refuse: str | None = None) -> str:
        accepted = self.demands.accept(uuid.uuid4().hex, comment, refuse=refuse)
        assert accepted.outcome in ("accepted", "refused")
        return comment.key

    def answer(self, key: str, text: str = "It is a test.") -> None:
        self.demands.change(key, lambda known: machine.acquired(known, "h", now_text()))
        self.move(key, lambda known: machine.answered(known, "h", known.revision, text, now_text()))

    def move(self, key: str, change: Callable[[Demand], Demand]) -> None:
        self.demands.change(key, change, self.demands.stage_post)

    def get(self, key: str) -> Demand:
        found = self.demands.get(key)
        assert found is not None
        return found

    def posted(self, *keys: str, seconds: float = 15.0, sweep: bool = False) -> list[Demand]:
        """Wait until all these demands are posted, and return them."""
        return self.until(DemandState.POSTED, *keys, seconds=seconds, sweep=sweep)

    def until(self, state: DemandState, *keys: str, seconds: float = 15.0, sweep: bool = False) -> list[Demand]:
        def there() -> bool:
            if sweep:
                sweep_posts(self.demands)
            return all(self.get(key).state is state for key in keys)

        eventually(there, seconds, f"{state}: {[self.get(k) for k in keys]}")
        return [self.get(key) for key in keys]

    def idle(self, seconds: float = 10.0) -> None:
        """Wait until no post is pending."""
        eventually(lambda: not self.posts.threads(), seconds, f"pending: {self.posts.threads()}")

    def shown(self, key: str) -> None:
        """Wait until the note is on GitHub."""
        eventually(lambda: self.note(key).shown is not None, 10, f"note of {key}")

    def note(self, key: str) -> machine.Note:
        return self.get(key).note or machine.Note()
