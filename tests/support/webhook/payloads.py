"""Deliveries for tests and the demo: GitHub's own examples in data/github/, and variants of them."""

import copy
import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "github"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
EVENTS = {name: name.partition(".")[0] for name in NAMES}
AUTHOR = 21031067
"""The numeric id of the account in all examples: author, sender, assignee and reviewer."""


def load(name: str) -> dict[str, Any]:
    """Return the example `name`, one of `NAMES`: `event.action`."""
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return found


def change(payload: dict[str, Any], **members: Any) -> dict[str, Any]:
    """Return a copy with these members set: `comment__body="x"` sets payload["comment"]["body"]."""
    made = copy.deepcopy(payload)
    for path, value in members.items():
        *parents, last = path.split("__")
        place = made
        for name in parents:
            place = place[name]
        place[last] = value
    return made


def comment(
    key: str = "IC_1",
    body: str = "@helper what is this?",
    *,
    action: str = "created",
    pull: bool = True,
    **members: Any,
) -> dict[str, Any]:
    """Return an issue comment. `pull` puts it on a pull request's conversation."""
    made = change(load(f"issue_comment.{action}"), comment__node_id=key, comment__body=body, **members)
    if pull:
        url = made["issue"]["url"].replace("/issues/", "/pulls/")
        made["issue"]["pull_request"] = {"url": url, "html_url": url}
    return made


def review_comment(key: str = "PRRC_1", body: str = "@helper why?", *, action: str = "created", **members: Any) -> Any:
    """Return a comment on a line of a pull request."""
    kept = load(f"pull_request_review_comment.{action}")
    return change(kept, comment__node_id=key, comment__body=body, **members)


def review(key: str = "PRR_1", body: str | None = None, state: str = "commented", **members: Any) -> dict[str, Any]:
    """Return a submitted review."""
    kept = load("pull_request_review.submitted")
    return change(kept, review__node_id=key, review__body=body, review__state=state, **members)
