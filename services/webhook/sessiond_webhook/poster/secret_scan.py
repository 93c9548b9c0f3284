"""Finds secrets of this service in a text. Pure.

The poster searches every text before it posts it, for every configured secret. It finds a secret in plain text, even
with blanks, line ends or invisible characters inside. It finds the encodings URL, HTML entities, hexadecimal, and
base64 of any text that holds the secret. It does not find other encodings, such as a cipher. This is a second
protection: the agent never has the secrets in its environment. Values with fewer than `SHORTEST` characters are not
searched, because many texts contain them by chance.
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
"""Names of variables that hold a secret. With _FILE at the end, the variable names a file that holds it."""
_LONG_LINE: Final = 32
"""A line of a secret (such as a private key) with this many characters or more is also searched by itself."""
_INVISIBLE: Final = re.compile(r"[\s\u00ad\u034f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]+")


@dataclass(frozen=True, slots=True)
class Secrets:
    """Secrets by the names of their variables. `repr` shows only the names."""

    forms: tuple[tuple[str, frozenset[str]], ...] = ()
    unsearched: tuple[str, ...] = ()
    """Names of secrets that are set but too short to be searched."""

    def found(self, text: str) -> str | None:
        """Return the name of a secret that the text holds, or None."""
        readings = {_plain(one) for one in (text, unquote(text), unquote_plus(text), html.unescape(text))}
        readings |= {one.lower() for one in readings}
        return next(
            (name for name, forms in self.forms if any(form in reading for form in forms for reading in readings)), None
        )

    def __repr__(self) -> str:
        return f"Secrets({', '.join(name for name, _ in self.forms)})"


def secrets(named: Iterable[tuple[str, str]]) -> Secrets:
    """Return the secrets of these pairs of name and value. A value may have several lines."""
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
    """Return name and value of each variable that holds secrets, whole and, if it is a list, each part.

    Commas or blanks separate the parts.
    """
    found = [(name, part) for name, value in environ.items() if NAMES.search(name) for part in [value, *_listed(value)]]
    password = urlsplit(environ.get("REDIS_URL", "")).password
    return found + [("REDIS_URL", one) for one in {password, unquote(password)}] if password else found


def _listed(value: str) -> list[str]:
    parts = value.replace(",", " ").split()
    return parts if len(parts) > 1 and "\n" not in value and "-----BEGIN" not in value else []


def _parts(value: str) -> list[str]:
    """Return what is searched: the value, and each long line of it, without the first and last line of a key."""
    text = value.strip().replace("\\n", "\n")
    lines = [line.strip() for line in text.splitlines()]
    parts = (
        [text, *(line for line in lines if len(line) >= _LONG_LINE and "-----" not in line)]
        if len(lines) > 1
        else [text]
    )
    return [part for part in parts if len(_plain(part)) >= SHORTEST]


def _plain(text: str) -> str:
    return _INVISIBLE.sub("", text)


def _forms(value: str) -> set[str]:
    data = value.encode()
    forms = {_plain(value), data.hex()}
    for offset in range(3):
        # The first and last characters depend on the text around the secret, so they are left out.
        whole = base64.b64encode(b"\0" * offset + data).decode().rstrip("=")
        skipped = -(-offset * 8 // 6)
        ends = len(whole) - (1 if (offset + len(data)) % 3 else 0)
        forms |= {whole[skipped:ends], whole[skipped:ends].replace("+", "-").replace("/", "_")}
    return forms
