"""The keys file: the callers and their rights. Its lines are `name role sha256-of-key [session patterns]`."""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from sessiond.lock.rules import Kind
from sessiond_common.roles import Role


class KeysError(ValueError):
    """The keys file is not valid. The text names the line."""


KINDS: Final = {
    Role.HANDLER: frozenset({Kind.HANDLER}),
    Role.WORKER: frozenset({Kind.WORKER}),
    Role.ADMIN: frozenset(Kind),
    Role.VIEWER: frozenset[Kind](),
}
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a key."""

    name: str
    role: Role
    patterns: tuple[str, ...] = ("*",)

    def may_see(self, session: str) -> bool:
        """Whether the key's patterns include this session (`owner/repo`)."""
        return any(fnmatchcase(session, pattern) for pattern in self.patterns)

    def may_take(self, kind: Kind) -> bool:
        """Whether the role may take this kind of ticket."""
        return kind in KINDS[self.role]


class Keys:
    """The callers, each with the SHA-256 of its key."""

    def __init__(self, callers: Iterable[tuple[str, Caller]]) -> None:
        self._callers = tuple(callers)

    def find(self, key: str) -> Caller | None:
        """Return the caller that owns this key, or None."""
        wanted = digest_of(key)
        return self.find_by(lambda digest: hmac.compare_digest(digest, wanted))

    def find_by(self, fits: Callable[[str], bool]) -> Caller | None:
        """Return the last caller whose digest `fits`. All are compared, so that the time reveals nothing."""
        found = None
        for digest, caller in self._callers:
            if fits(digest):
                found = caller
        return found


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key in hex, as in the keys file."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse(text: str) -> Keys:
    """Return the keys in this text. Empty lines and `#` comments are skipped.

    Raises:
        KeysError: a line is not valid.
    """
    callers: list[tuple[str, Caller]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) < 3:
            raise KeysError(f"line {number}: expected: name role sha256-of-key [session patterns]")
        name, role, digest, *patterns = words
        if role not in tuple(Role):
            raise KeysError(f"line {number}: unknown role {role!r}; use one of {', '.join(Role)}")
        if not _DIGEST.fullmatch(digest.lower()):
            raise KeysError(f"line {number}: the third word must be the SHA-256 of the key, as 64 hex digits")
        callers.append((digest.lower(), Caller(name, Role(role), tuple(p.lower() for p in patterns) or ("*",))))
    return Keys(callers)


def read(path: Path) -> Keys:
    """Return the keys of this file.

    Raises:
        KeysError: the file cannot be read, or a line is not valid.
    """
    try:
        return parse(path.read_text())
    except (OSError, UnicodeDecodeError, KeysError) as error:
        raise KeysError(f"{path}: {error}") from error
