"""Without GitHub: the comments that would be posted, as readable files. The same port as github.py.

owner/repo/number/key.md            the note of a comment on an issue or pull request, or of a review
owner/repo/number/root/key.md       of a review comment, in its review thread
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sessiond_common.private_files import write_durable
from sessiond_webhook.demands.comment import Comment
from sessiond_webhook.poster.threads import Away, Never, Standing

_END_OF_HEAD: Final = "\n---\n\n"


@dataclass(frozen=True, slots=True)
class Outbox:
    """Files below `root`. Writing is atomic; a disk that cannot be written raises Away."""

    root: Path

    def account(self, comment: Comment) -> str:
        return "outbox"

    def create(self, comment: Comment, body: str) -> Standing:
        return self._write(comment, self._path(comment), body)

    def edit(self, comment: Comment, id: int, body: str) -> Standing:
        path = self._path(comment)
        if not path.exists():
            raise Never(404, "the file is gone")
        return self._write(comment, path, body)

    def find(self, comment: Comment, marker: str) -> Standing | None:
        path = self._path(comment)
        try:
            body = path.read_text().partition(_END_OF_HEAD)[2].rstrip("\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Away(str(error)) from error
        return _standing(path, body) if body.endswith(marker) else None

    def _write(self, comment: Comment, path: Path, body: str) -> Standing:
        head = f"To @{comment.author.login}, {comment.url or comment.thread}\n"
        asked = "".join(f"> {line}\n" for line in comment.body.splitlines())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durable(path, f"{head}\n{asked}{_END_OF_HEAD}{body}\n")
        except OSError as error:
            raise Away(str(error)) from error
        return _standing(path, body)

    def _path(self, comment: Comment) -> Path:
        parts = [*comment.repo.split("/"), str(comment.number)]
        if comment.root is not None:
            parts.append(str(comment.root))
        return self.root.joinpath(*map(_name, parts), f"{_name(comment.key)}.md")


def _standing(path: Path, body: str) -> Standing:
    return Standing(int(hashlib.sha256(path.name.encode()).hexdigest()[:12], 16), path.absolute().as_uri(), body)


def _name(text: str) -> str:
    """A name that stays below the root whatever GitHub sent, and stays another's neighbour, not the same."""
    plain = re.sub(r"[^0-9A-Za-z._-]", "_", text).lstrip(".")
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
