"""Reads the members of a payload and checks the type of each. Pure. Every method raises BadPayload, nothing else."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sessiond_webhook.demands.comment import Person

_NODE_ID: Final = re.compile(r"[!-~]{1,200}")
_REPO: Final = re.compile(r"[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")
_MOST: Final = 2**63


class BadPayload(ValueError):
    """The payload of a supported event is not valid. The message names the member."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


@dataclass(frozen=True, slots=True)
class Members:
    """A JSON object of a payload. `path` is its place in the payload."""

    values: Mapping[str, Any]
    path: str = ""

    def _where(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def bad(self, name: str, why: str) -> BadPayload:
        """Return the error that names this member."""
        return BadPayload(self._where(name), why)

    def has(self, name: str) -> bool:
        """Whether the member is present and not null."""
        return self.values.get(name) is not None

    def object(self, name: str) -> "Members":
        """Return a JSON object."""
        found = self.values.get(name)
        if not isinstance(found, dict):
            raise self.bad(name, "must be an object")
        return Members(found, self._where(name))

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string, or `default` for one that is missing or null."""
        found = self.values.get(name)
        if found is None and default is not None:
            return default
        if not isinstance(found, str):
            raise self.bad(name, "must be a string")
        return found

    def optional_text(self, name: str) -> str | None:
        """Return a string, or None."""
        return self.text(name) if self.has(name) else None

    def number(self, name: str) -> int:
        """Return a whole number above 0, such as an id or a line."""
        found = self.values.get(name)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < _MOST:
            raise self.bad(name, "must be a whole number above 0")
        return found

    def optional_number(self, name: str) -> int | None:
        """Return a whole number above 0, or None."""
        return self.number(name) if self.has(name) else None

    def node_id(self) -> str:
        """Return the member `node_id`: 1 to 200 visible ASCII characters."""
        found = self.text("node_id")
        if not _NODE_ID.fullmatch(found):
            raise self.bad("node_id", "must be 1 to 200 visible characters")
        return found

    def time(self, name: str, default: str | None = None) -> str:
        """Return a time as RFC 3339 in UTC with Z, so that the order of texts is the order of times."""
        found = self.text(name, default)
        if not _TIME.fullmatch(found):
            raise self.bad(name, "must be a time, RFC 3339")
        try:
            moment = datetime.fromisoformat(found).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise self.bad(name, "must be a time, RFC 3339") from error
        return moment.isoformat().replace("+00:00", "Z")

    def person(self, name: str) -> Person | None:
        """Return an account, or None for null, which GitHub sends for a deleted account."""
        if not self.has(name):
            return None
        found = self.object(name)
        return Person(found.number("id"), found.text("type", ""), found.text("login"))

    def repo(self) -> str:
        """Return the member `repository.full_name`, as GitHub spells it."""
        found = self.object("repository")
        name = found.text("full_name")
        if not _REPO.fullmatch(name) or {".", ".."} & set(name.split("/")):
            raise found.bad("full_name", "must be owner/repo")
        return name

    def labels(self) -> tuple[str, ...]:
        """Return the names in the member `labels`."""
        found = self.values.get("labels")
        if found is None:
            return ()
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise self.bad("labels", "must be a list of objects")
        return tuple(Members(one, self._where("labels")).text("name") for one in found)
