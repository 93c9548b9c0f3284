"""Whether a text holds a secret of ours. Pure.

Every text is searched before it is posted, for every configured secret: as it stands, with blanks, line ends or
invisible characters inside, url-encoded, as HTML entities, as hexadecimal, and as base64 of any text that holds it.
Other disguises (a cipher, one letter a sentence) are not found: this is a net below the agent, which never gets the
secrets in its environment. Values below SHORTEST characters are not searched: too many texts hold them by chance.
"""

import base64
import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, unquote_plus, urlsplit

SHORTEST: Final = 8
NAMES: Final = re.compile(
    r"(?:^|_)(?:SECRETS?|TOKEN|KEY|PASSWORD|PASSPHRASE|CREDENTIALS?)(?:_(?:PREVIOUS|OLD|NEXT|[0-9]+))?$"
)
"""Variables whose value is a secret; with _FILE behind it, the file's text is."""
_LINE: Final = 32
"""From this length each line of a secret of several lines (a private key) counts by itself."""
_INVISIBLE: Final = re.compile(r"[\s\u00ad\u034f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]+")


@dataclass(frozen=True, slots=True)
class Secrets:
    """Secrets by the names of their variables; `values` are never shown."""

    forms: tuple[tuple[str, frozenset[str]], ...] = ()
    unsearched: tuple[str, ...] = ()
    """Names of secrets that are set and too short to be searched for."""

    def found(self, text: str) -> str | None:
        """The name of a secret that the text holds, None when it holds none."""
        readings = {_plain(one) for one in (text, unquote(text), unquote_plus(text), html.unescape(text))}
        readings |= {one.lower() for one in readings}
        return next((n for n, forms in self.forms if any(f in r for f in forms for r in readings)), None)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(name for name, _ in self.forms)})"


def secrets(named: Iterable[tuple[str, str]]) -> Secrets:
    """Secrets from (name, value); a value may have several lines."""
    forms: dict[str, set[str]] = {}
    short: list[str] = []
    for name, value in named:
        parts = _parts(value)
        for part in parts:
            forms.setdefault(name, set()).update(_forms(part))
        if value.strip() and not parts:
            short.append(name)
    return Secrets(tuple((name, frozenset(found)) for name, found in forms.items()), tuple(short))


def named_secrets(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, value) of the variables that hold secrets; several values stand in one, by commas or blanks."""
    found = [(name, part) for name, value in environ.items() if NAMES.search(name) for part in [value, *_listed(value)]]
    password = urlsplit(environ.get("REDIS_URL", "")).password
    return found + [("REDIS_URL", one) for one in {password, unquote(password)}] if password else found


def _listed(value: str) -> list[str]:
    parts = value.replace(",", " ").split()
    return parts if len(parts) > 1 and "\n" not in value and "-----BEGIN" not in value else []


def _parts(value: str) -> list[str]:
    """What is searched for: the value, and the long lines of one that has several, without a key's first and last."""
    text = value.strip().replace("\\n", "\n")
    lines = [line.strip() for line in text.splitlines()]
    parts = (
        [text, *(line for line in lines if len(line) >= _LINE and "-----" not in line)] if len(lines) > 1 else [text]
    )
    return [part for part in parts if len(_plain(part)) >= SHORTEST]


def _plain(text: str) -> str:
    return _INVISIBLE.sub("", text)


def _forms(value: str) -> set[str]:
    data = value.encode()
    forms = {_plain(value), data.hex()}
    for offset in range(3):
        # The first and last letters hang on what stands beside the secret: they are left out.
        whole = base64.b64encode(b"\0" * offset + data).decode().rstrip("=")
        skipped = -(-offset * 8 // 6)
        ends = len(whole) - (1 if (offset + len(data)) % 3 else 0)
        forms |= {whole[skipped:ends], whole[skipped:ends].replace("+", "-").replace("/", "_")}
    return forms
