"""Checks for tables of settings: accepted values, refused values, and error lines without values."""

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sessiond_common.env import SettingsError

MARKER = "hunter2"
SECONDS = "must be a number above 0 and below 1e9"
COUNT = "must be a whole number, 1 or more"
PORT = "must be a whole number from 1 to 65535"
URL = "must begin with http:// or https://"
REDIS = "must begin with redis://, rediss:// or unix://"
LOGS = "must be one of console, json"
NO_FILE = "cannot read the file: No such file or directory"


def value_at(settings: object, path: str) -> Any:
    """Return the attribute at a dotted path."""
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def error_line(from_env: Callable[[Mapping[str, str]], object], environ: Mapping[str, str]) -> str:
    """Return the error that `from_env` raises. It must be one line."""
    with pytest.raises(SettingsError) as error:
        from_env(environ)
    line = str(error.value)
    assert "\n" not in line
    return line


def assert_all_named(
    from_env: Callable[[Mapping[str, str]], object], given: Mapping[str, str], bad: Mapping[str, tuple[str, str]]
) -> None:
    """Check that one line names every bad variable with its reason. `bad` is name -> (value, reason)."""
    line = error_line(from_env, {**given, **{name: value for name, (value, _) in bad.items()}})
    assert sorted(line.split("; ")) == sorted(f"{name}: {reason}" for name, (_, reason) in bad.items())


def assert_no_value_shown(from_env: Callable[[Mapping[str, str]], object], names: list[str]) -> None:
    """Check that no error line shows a value, even if a secret is in the wrong variable."""
    assert len(names) > 5
    for name in names:
        try:
            from_env({name: MARKER})
        except SettingsError as error:
            assert MARKER not in str(error), name
    assert MARKER not in error_line(from_env, dict.fromkeys(names, MARKER))
    assert MARKER not in error_line(from_env, dict.fromkeys(names, f"-----BEGIN {MARKER}\n{MARKER}"))


def assert_exit_2(
    main: Callable[[], int], line: str, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that a program with this environment prints this one line on stderr and exits with 2."""
    stderr = io.StringIO()
    with monkeypatch.context() as patch:
        for name in os.environ:
            patch.delenv(name)
        for name, text in environ.items():
            patch.setenv(name, text)
        with contextlib.redirect_stderr(stderr):
            assert main() == 2
    assert stderr.getvalue() == f"{line}\n"
