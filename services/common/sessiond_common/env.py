"""Settings from environment variables, parsed by `environs`.

A program describes its settings in a function that takes an `Env` and returns a dataclass. `load` calls this function,
and reports all variables that are not valid in one line. No error shows a variable's value: it may be a secret.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import environs

_T = TypeVar("_T")
LOG_FORMATS: Final = ("console", "json")
DEFAULT_REDIS: Final = "redis://127.0.0.1:6379/0"


class SettingsError(ValueError):
    """Settings are not valid. The text is one line: `NAME: reason`, separated by "; "."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable: its name, its default as text (empty for none), and its meaning."""

    name: str
    default: str
    what: str


def load(read: Callable[["Env"], _T], environ: Mapping[str, str]) -> _T:
    """Return the settings that `read` takes from the environment.

    Raises:
        SettingsError: at least one variable is not valid. The text names each of them.
    """
    env = Env(environ)
    found = read(env)
    env.check()
    return found


def list_settings(read: Callable[["Env"], object]) -> tuple[Setting, ...]:
    """Return all variables that `read` reads, in its order."""
    env = Env({})
    read(env)
    return env.settings


class Env:
    """Typed readers of variables. An empty variable counts as not set.

    If a variable is not valid, its reader returns the default, and `check` raises later. Each reader takes the
    variable's name, its default and its meaning. The reference documentation shows the meaning.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._variables = _Variables(environ)
        self._refused: list[tuple[tuple[str, ...], str]] = []
        self._settings: dict[str, Setting] = {}

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The variables that were read so far, valid or not."""
        return tuple(self._settings.values())

    def check(self) -> None:
        """Check all variables that were read. Raises SettingsError if one is not valid."""
        errors = self._variables.errors()
        lines = [f"{name}: {', '.join(dict.fromkeys(reasons))}" for name, reasons in errors.items()]
        for names, reason in self._refused:
            if not any(name in errors or f"{name}_FILE" in errors for name in names):
                lines.append(f"{', '.join(names)}: {reason}")
        if lines:
            raise SettingsError("; ".join(lines))

    def refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Report that a combination of variables is not valid, although each is valid by itself."""
        self._refused.append((names, reason))

    def read(self, name: str, parse: Callable[[str], _T], default: _T, what: str) -> _T:
        """Return `parse` of the text. `parse` raises ValueError with a reason that does not show the text."""
        self._settings.setdefault(name, Setting(name, _shown(default), what))
        found: _T | None = self._variables.parsed(name, None, parse=parse, default_value=default)
        return default if found is None else found

    def text(self, name: str, default: str, what: str) -> str:
        """Return the text without surrounding blanks."""
        return self.read(name, str.strip, default, what)

    def seconds(self, name: str, default: float, what: str) -> float:
        """Return a duration above 0."""
        return self.read(name, amount, default, what)

    def money(self, name: str, default: float | None, what: str) -> float | None:
        """Return US dollars above 0, or None for no limit."""
        return self.read(name, amount, default, what)

    def count(self, name: str, default: int, what: str) -> int:
        """Return a whole number of 1 or more."""
        return self.read(name, count, default, what)

    def flag(self, name: str, default: bool, what: str) -> bool:
        """Return a switch: 1 or 0; also true, yes, on, false, no, off."""
        return self.read(name, flag, default, what)

    def port(self, name: str, default: int, what: str) -> int:
        """Return a TCP port, 1 to 65535."""
        return self.read(name, port, default, what)

    def words(self, name: str, parse: Callable[[str], _T], default: tuple[_T, ...], what: str) -> tuple[_T, ...]:
        """Return `parse` of each word; commas or blanks separate words."""
        return self.read(name, lambda text: _each(text, parse), default, what)

    def one_of(self, name: str, choices: tuple[str, ...], default: str, what: str) -> str:
        """Return one of the words `choices`."""
        return self.read(name, lambda text: choice(text, choices), default, what)

    def log_format(self, name: str) -> str:
        """Return `console` or `json`."""
        return self.one_of(name, LOG_FORMATS, "console", "format of log lines: console or json")

    def url(self, name: str, default: str, what: str) -> str:
        """Return an http or https URL without slashes at its end."""
        return self.read(name, url, default, what)

    def path(self, name: str, default: Path, what: str) -> Path:
        """Return a path as it is written."""
        return self.read(name, Path, default, what)

    def optional_path(self, name: str, what: str) -> Path | None:
        """Return a path as it is written, or None."""
        return self.read(name, Path, None, what)

    def state_dir(self) -> Path:
        """Return SESSIOND_STATE_DIR, the directory where this machine's services keep their files."""
        what = "directory of keys, the agent's state, working directories and the file lock"
        return self.path("SESSIOND_STATE_DIR", Path(".state"), what)

    def redis_url(self) -> str:
        """Return REDIS_URL, else the first line of the file that REDIS_URL_FILE names."""
        direct = self.read("REDIS_URL", redis_url, DEFAULT_REDIS, "URL of the Redis server")
        if self._variables.has("REDIS_URL"):
            return direct
        what = "file whose first line is the URL, if REDIS_URL is not set"
        return self.read("REDIS_URL_FILE", lambda path: redis_url(first_line(path)), "", what) or DEFAULT_REDIS

    def secret(self, name: str, what: str) -> str:
        """Return the variable NAME, else the first line of the file that NAME_FILE names, else an empty text."""
        direct = self.text(name, "", what)
        return direct or self.read(
            f"{name}_FILE", first_line, "", f"file whose first line is {name}, if that is not set"
        )


class _Variables(environs.Env):
    """`environs` on a given mapping. It collects errors until `errors` is called."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(eager=False)
        self._given = environ
        self.add_parser("parsed", _parsed)

    def has(self, name: str) -> bool:
        return bool(self._given.get(name))

    def errors(self) -> Mapping[str, list[str]]:
        """Return the reasons by variable. Nothing can be read after that."""
        try:
            self.seal()
        except environs.EnvValidationError as error:
            return cast("Mapping[str, list[str]]", error.error_messages)
        return {}

    def _get_value(self, env_key: str, default: Any) -> Any:
        """Look up a variable in the given mapping. FileAwareEnv of `environs` overrides the same method."""
        return self._given.get(env_key) or default


def _parsed(text: str | None, parse: Callable[[str], _T], default_value: _T) -> _T:
    """Adapt `parse` to `environs`, which also passes defaults (here None) to a parser."""
    if text is None:
        return default_value
    try:
        return parse(text)
    except ValueError as error:
        raise environs.ValidationError(str(error)) from error


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(int(default))
    if default is None or default == 0:
        return ""
    if isinstance(default, tuple | frozenset):
        return " ".join(sorted(map(str, default)))
    return f"{default:g}" if isinstance(default, float) else str(default)


def flag(text: str) -> bool:
    """Parse a switch. Raises ValueError."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be 1 or 0")


def amount(text: str) -> float:
    """Parse seconds or money. Raises ValueError."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if 0 < number < 1e9:
            return number
    raise ValueError("must be a number above 0 and below 1e9")


def whole(text: str, most: int | None, reason: str) -> int:
    """Parse a whole number from 1 to `most`, without limit if that is None. Raises ValueError with `reason`."""
    with contextlib.suppress(ValueError):
        number = int(text)
        if number >= 1 and (most is None or number <= most):
            return number
    raise ValueError(reason)


def count(text: str) -> int:
    """Parse a whole number of 1 or more. Raises ValueError."""
    return whole(text, None, "must be a whole number, 1 or more")


def port(text: str) -> int:
    """Parse a TCP port. Raises ValueError."""
    return whole(text, 65535, "must be a whole number from 1 to 65535")


def choice(text: str, choices: tuple[str, ...]) -> str:
    """Parse one of `choices`. Raises ValueError."""
    if text not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}")
    return text


def url(text: str) -> str:
    """Parse a URL; slashes at its end are removed. Raises ValueError."""
    if not text.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return text.rstrip("/")


def redis_url(text: str) -> str:
    """Parse a Redis URL. Raises ValueError."""
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return text


def first_line(path: str) -> str:
    """Read the first line of a file, without surrounding blanks. Raises ValueError."""
    return (file_text(path).splitlines() or [""])[0].strip()


def file_text(path: str) -> str:
    """Read a text file. Raises ValueError without the path, because the path may be a secret by mistake."""
    try:
        return Path(path).read_text()
    except UnicodeDecodeError as error:
        raise ValueError("the file is not text in UTF-8") from error
    except OSError as error:
        raise ValueError(f"cannot read the file: {error.strerror or type(error).__name__}") from error


def _each(text: str, parse: Callable[[str], _T]) -> tuple[_T, ...]:
    found: list[_T] = []
    for number, word in enumerate(text.replace(",", " ").split(), 1):
        try:
            found.append(parse(word))
        except ValueError as error:
            raise ValueError(f"word {number} {error}") from error
    return tuple(found)
