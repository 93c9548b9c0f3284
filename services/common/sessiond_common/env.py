"""Settings from the environment: typed readers whose errors are one line that names the variable."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")


class SettingsError(ValueError):
    """A setting is not valid; the text is one line that names it."""


class Env:
    """Reads variables of `environ`. An empty variable counts as not set. Everything raises SettingsError."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def read(self, name: str, parse: Callable[[str], _T], default: _T) -> _T:
        """`parse` of the variable's text; its ValueError becomes a SettingsError that names the variable."""
        text = self._environ.get(name)
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise SettingsError(f"{name}: {error}") from error

    def text(self, name: str, default: str = "") -> str:
        """As it stands, without surrounding blanks."""
        return self.read(name, str.strip, default)

    def seconds(self, name: str, default: float) -> float:
        """A duration above 0."""
        return self.read(name, _seconds, default)

    def count(self, name: str, default: int) -> int:
        """A whole number of 1 or more."""
        return self.read(name, _count, default)

    def flag(self, name: str, default: bool) -> bool:
        """1 or 0; true, yes, on, false, no, off will do."""
        return self.read(name, _flag, default)

    def money(self, name: str, default: float | None) -> float | None:
        """US dollars above 0; None for no bound."""
        return self.read(name, _seconds, default)

    def port(self, name: str, default: int) -> int:
        """1 to 65535."""
        return self.read(name, _port, default)

    def words(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Separated by commas or blanks."""
        return self.read(name, lambda text: tuple(text.replace(",", " ").split()), default)

    def one_of(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of these words."""
        return self.read(name, lambda text: _choice(text, choices), default)

    def url(self, name: str, default: str) -> str:
        """http or https, without a slash at its end."""
        return self.read(name, _url, default)

    def redis_url(self) -> str:
        """REDIS_URL, else the first line of the file that REDIS_URL_FILE names."""
        return self.read("REDIS_URL", _redis_url, "") or self.read(
            "REDIS_URL_FILE", lambda path: _redis_url(_first_line(path)), "redis://127.0.0.1:6379/0"
        )

    def path(self, name: str, default: Path) -> Path:
        """A path as it stands."""
        return self.read(name, Path, default)

    def secret(self, name: str) -> str:
        """The variable NAME, else the first line of the file that NAME_FILE names, else empty."""
        return self.text(name) or self.read(f"{name}_FILE", _first_line, "")


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be 1 or 0")


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise ValueError("must be a number above 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be 1 or more")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise ValueError("must be a port, 1 to 65535")
    return number


def _choice(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}")
    return text


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return text.rstrip("/")


def _redis_url(text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return text


def _first_line(text: str) -> str:
    try:
        return (Path(text).read_text().splitlines() or [""])[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
