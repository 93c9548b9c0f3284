"""Who may call: the keys file, lines `name role sha256-of-key [session patterns]`."""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from sessiond.lock.rules import Kind


class KeysError(ValueError):
    """The keys file is not valid; the text names the line."""


class Role(StrEnum):
    """What a key may do. Everybody may look; handler and worker take their own kind of ticket."""

    HANDLER = "handler"
    WORKER = "worker"
    ADMIN = "admin"
    VIEWER = "viewer"


KINDS: Final = {
    Role.HANDLER: frozenset({Kind.HANDLER}),
    Role.WORKER: frozenset({Kind.WORKER}),
    Role.ADMIN: frozenset(Kind),
    Role.VIEWER: frozenset[Kind](),
}
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key was shown."""

    name: str
    role: Role
    patterns: tuple[str, ...] = ("*",)

    def may_see(self, session: str) -> bool:
        """Whether the key is for this session (`owner/repo`)."""
        return any(fnmatchcase(session, pattern) for pattern in self.patterns)

    def may_take(self, kind: Kind) -> bool:
        """Whether the role may take this kind of ticket."""
        return kind in KINDS[self.role]


class Keys:
    """The callers by their key's SHA-256."""

    def __init__(self, callers: Iterable[tuple[str, Caller]]) -> None:
        self._callers = tuple(callers)

    def find(self, key: str) -> Caller | None:
        """The caller that this key is of."""
        shown = digest_of(key)
        return self.whose(lambda digest: hmac.compare_digest(digest, shown))

    def whose(self, fits: Callable[[str], bool]) -> Caller | None:
        """The last caller whose key's digest fits. Every one is asked, so that the time tells nothing."""
        found = None
        for digest, caller in self._callers:
            if fits(digest):
                found = caller
        return found


def digest_of(key: str) -> str:
    """What the keys file has of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse(text: str) -> Keys:
    """The keys in this text; empty lines and `#` comments are passed over. Raises KeysError."""
    callers: list[tuple[str, Caller]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) < 3:
            raise KeysError(f"line {number}: needs name, role and sha256-of-key")
        name, role, digest, *patterns = words
        if role not in tuple(Role):
            raise KeysError(f"line {number}: no role {role!r}; one of {', '.join(Role)}")
        if not _DIGEST.fullmatch(digest.lower()):
            raise KeysError(f"line {number}: the third word must be the key's SHA-256 in hex")
        callers.append((digest.lower(), Caller(name, Role(role), tuple(p.lower() for p in patterns) or ("*",))))
    return Keys(callers)


def read(path: Path) -> Keys:
    """The keys of this file. Raises KeysError, also when it cannot be read."""
    try:
        return parse(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"{path}: {error}") from error
    except KeysError as error:
        raise KeysError(f"{path}: {error}") from error
