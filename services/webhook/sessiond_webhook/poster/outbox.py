"""Writes answers to readable files, for a service without a login at GitHub. Implements `threads.Threads`.

owner/repo/number/key.md         the note of a comment on an issue or pull request, or of a review
owner/repo/number/root/key.md    the note of a review comment, in its review thread
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sessiond_common.private_files import write_durable
from sessiond_webhook.demands.comment import Comment
from sessiond_webhook.poster.threads import PostedComment, Refused, Unreachable

_HEAD_END: Final = "\n---\n\n"


@dataclass(frozen=True, slots=True)
class Outbox:
    """Files below `root`. Writes are atomic. Raises Unreachable for a file that cannot be read or written."""

    root: Path

    def account(self, comment: Comment) -> str:
        return "outbox"

    def create(self, comment: Comment, body: str) -> PostedComment:
        return self._write(comment, self._path(comment), body)

    def edit(self, comment: Comment, id: int, body: str) -> PostedComment:
        path = self._path(comment)
        if not path.exists():
            raise Refused(404, "the file does not exist any more")
        return self._write(comment, path, body)

    def find(self, comment: Comment, marker: str) -> PostedComment | None:
        path = self._path(comment)
        try:
            body = path.read_text().partition(_HEAD_END)[2].rstrip("\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unreachable(str(error)) from error
        return _posted_comment(path, body) if body.endswith(marker) else None

    def _write(self, comment: Comment, path: Path, body: str) -> PostedComment:
        head = f"To @{comment.author.login}, {comment.url or comment.thread}\n"
        asked = "".join(f"> {line}\n" for line in comment.body.splitlines())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durable(path, f"{head}\n{asked}{_HEAD_END}{body}\n")
        except OSError as error:
            raise Unreachable(str(error)) from error
        return _posted_comment(path, body)

    def _path(self, comment: Comment) -> Path:
        parts = [*comment.repo.split("/"), str(comment.number)]
        if comment.root is not None:
            parts.append(str(comment.root))
        return self.root.joinpath(*map(_name, parts), f"{_name(comment.key)}.md")


def _posted_comment(path: Path, body: str) -> PostedComment:
    return PostedComment(int(hashlib.sha256(path.name.encode()).hexdigest()[:12], 16), path.absolute().as_uri(), body)


def _name(text: str) -> str:
    """Return a file name that cannot leave the root and differs for different texts."""
    plain = re.sub(r"[^0-9A-Za-z._-]", "_", text).lstrip(".")
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
