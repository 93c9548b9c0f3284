"""Readers of environment variables: accepted and refused values, and one error line that shows no value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sessiond_common.env import DEFAULT_REDIS, Env, Setting, SettingsError, list_settings, load

Read = Callable[[Env], Any]

READERS: dict[str, Read] = {
    "text": lambda env: env.text("X", "default", "what"),
    "seconds": lambda env: env.seconds("X", 1.5, "what"),
    "money": lambda env: env.money("X", None, "what"),
    "count": lambda env: env.count("X", 7, "what"),
    "flag": lambda env: env.flag("X", True, "what"),
    "port": lambda env: env.port("X", 80, "what"),
    "words": lambda env: env.words("X", int, (9,), "what"),
    "one_of": lambda env: env.one_of("X", ("red", "green"), "red", "what"),
    "log_format": lambda env: env.log_format("X"),
    "url": lambda env: env.url("X", "http://default", "what"),
    "path": lambda env: env.path("X", Path("default"), "what"),
    "optional_path": lambda env: env.optional_path("X", "what"),
}
DEFAULTS = {
    "text": "default", "seconds": 1.5, "money": None, "count": 7, "flag": True, "port": 80, "words": (9,),
    "one_of": "red", "log_format": "console", "url": "http://default", "path": Path("default"), "optional_path": None,
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("environ", [{}, {"X": ""}])
def test_a_variable_that_is_not_set_or_empty_gives_the_default(reader: str, environ: dict[str, str]) -> None:
    assert load(READERS[reader], environ) == DEFAULTS[reader]


@pytest.mark.parametrize(
    ("reader", "text", "value"),
    [
        ("text", "  a b\n", "a b"), ("text", "  ", ""),
        ("seconds", "0.25", 0.25), ("seconds", " 3 ", 3.0), ("seconds", "999999999", 999_999_999.0),
        ("seconds", "1e3", 1000.0), ("money", "2.50", 2.5), ("money", "1e-9", 1e-9),
        ("count", "1", 1), ("count", " 12 ", 12), ("count", "268435456", 268_435_456), ("count", "1_000", 1000),
        ("flag", "1", True), ("flag", "true", True), ("flag", "Yes", True), ("flag", "ON", True),
        ("flag", "0", False), ("flag", "False", False), ("flag", "no", False), ("flag", "off", False),
        ("port", "1", 1), ("port", "65535", 65535),
        ("words", "1,2 3", (1, 2, 3)), ("words", " , ", ()), ("words", "4\t5\n", (4, 5)),
        ("one_of", "green", "green"), ("log_format", "json", "json"),
        ("url", "https://host/path//", "https://host/path"), ("url", "http://h", "http://h"),
        ("path", " a/b", Path(" a/b")), ("optional_path", "/a", Path("/a")),
    ],
)  # fmt: skip
def test_each_variable_accepts_its_good_values(reader: str, text: str, value: object) -> None:
    found = load(READERS[reader], {"X": text})
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("reader", "text", "reason"),
    [
        *(("seconds", text, "must be a number above 0 and below 1e9")
          for text in ("0", "-1", "1e9", "nan", "inf", "-inf", "many", "1 s", " ")),
        *(("money", text, "must be a number above 0 and below 1e9") for text in ("0", "$5", "1000000000")),
        *(("count", text, "must be a whole number, 1 or more") for text in ("0", "-1", "1.0", "two", "1" * 5000, " ")),
        *(("flag", text, "must be 1 or 0") for text in ("2", "y", " 1", "enabled")),
        *(("port", text, "must be a whole number from 1 to 65535") for text in ("0", "65536", "-1", "80/tcp", "http")),
        ("one_of", "blue", "must be one of red, green"), ("one_of", "Red", "must be one of red, green"),
        ("log_format", "xml", "must be one of console, json"),
        *(("url", text, "must begin with http:// or https://") for text in ("host", "ftp://h", " http://h", "HTTP://h")),
    ],
)  # fmt: skip
def test_bad_values_name_the_variable_and_the_reason(reader: str, text: str, reason: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(READERS[reader], {"X": text})
    assert str(error.value) == f"X: {reason}"


def test_an_error_names_the_position_of_the_bad_word() -> None:
    def small(word: str) -> int:
        if int(word) > 9:
            raise ValueError("must be one digit")
        return int(word)

    with pytest.raises(SettingsError) as error:
        load(lambda env: env.words("X", small, (), "what"), {"X": "1, 22 3"})
    assert str(error.value) == "X: word 2 must be one digit"


def test_all_bad_variables_are_in_one_line_in_the_order_of_reading() -> None:
    def read(env: Env) -> None:
        env.port("B_PORT", 1, "what")
        env.text("GOOD", "", "what")
        env.count("A_COUNT", 1, "what")
        env.port("B_PORT", 1, "what")
        env.secret("KEY", "what")
        env.refuse(("GOOD", "OTHER"), "set one of them")

    with pytest.raises(SettingsError) as error:
        load(read, {"A_COUNT": "-5", "B_PORT": "many", "GOOD": "x", "KEY_FILE": "/not/there"})
    assert str(error.value) == (
        "B_PORT: must be a whole number from 1 to 65535; A_COUNT: must be a whole number, 1 or more; "
        "KEY_FILE: cannot read the file: No such file or directory; GOOD, OTHER: set one of them"
    )


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({}, "KEY: must be set"),
        ({"KEY_FILE": "/not/there"}, "KEY_FILE: cannot read the file: No such file or directory"),
    ],
)
def test_a_variable_with_an_error_gets_no_second_error(environ: dict[str, str], line: str) -> None:
    def read(env: Env) -> None:
        if not env.secret("KEY", "what"):
            env.refuse(("KEY",), "must be set")

    with pytest.raises(SettingsError) as error:
        load(read, environ)
    assert str(error.value) == line


def test_errors_of_one_environment_do_not_appear_in_the_next() -> None:
    with pytest.raises(SettingsError):
        load(READERS["port"], {"X": "no"})
    assert load(READERS["port"], {"X": "5"}) == 5


def test_only_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "5")
    assert load(READERS["port"], {}) == 80
    monkeypatch.setenv("Y", "9")
    assert load(READERS["text"], {"X": "${Y}"}) == "${Y}"


@pytest.mark.parametrize(
    ("environ", "value"),
    [
        ({}, ""),
        ({"KEY": " k \n"}, "k"),
        ({"KEY": "k", "KEY_FILE": "/not/there"}, "k"),
        ({"KEY": "", "KEY_FILE": "{file}"}, "first"),
        ({"KEY": "  ", "KEY_FILE": "{file}"}, "first"),
        ({"KEY_FILE": "{empty}"}, ""),
    ],
)
def test_a_secret_comes_from_the_variable_or_from_the_first_line_of_a_file(
    environ: dict[str, str], value: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("  first \nsecond\n")
    (tmp_path / "empty").write_text("")
    given = {name: text.format(file=tmp_path / "file", empty=tmp_path / "empty") for name, text in environ.items()}
    assert load(lambda env: env.secret("KEY", "what"), given) == value


@pytest.mark.parametrize(
    ("environ", "value"),
    [
        ({}, DEFAULT_REDIS),
        ({"REDIS_URL": "rediss://host/1"}, "rediss://host/1"),
        ({"REDIS_URL": "unix:///sock", "REDIS_URL_FILE": "/not/there"}, "unix:///sock"),
        ({"REDIS_URL": "", "REDIS_URL_FILE": "{file}"}, "redis://user:word@host:6379/0"),
    ],
)
def test_the_redis_url_comes_from_the_variable_or_from_a_file(
    environ: dict[str, str], value: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("redis://user:word@host:6379/0\n")
    given = {name: text.format(file=tmp_path / "file") for name, text in environ.items()}
    assert load(Env.redis_url, given) == value


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"REDIS_URL": "http://x"}, "REDIS_URL: must begin with redis://, rediss:// or unix://"),
        (
            {"REDIS_URL": "http://x", "REDIS_URL_FILE": "/not/there"},
            "REDIS_URL: must begin with redis://, rediss:// or unix://",
        ),
        ({"REDIS_URL_FILE": "/not/there"}, "REDIS_URL_FILE: cannot read the file: No such file or directory"),
        ({"REDIS_URL_FILE": "/"}, "REDIS_URL_FILE: cannot read the file: Is a directory"),
        ({"REDIS_URL_FILE": "{file}"}, "REDIS_URL_FILE: must begin with redis://, rediss:// or unix://"),
        ({"REDIS_URL_FILE": "{binary}"}, "REDIS_URL_FILE: the file is not text in UTF-8"),
    ],
)
def test_a_bad_redis_url_is_refused_with_its_reason(environ: dict[str, str], line: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    given = {n: text.format(file=tmp_path / "file", binary=tmp_path / "binary") for n, text in environ.items()}
    with pytest.raises(SettingsError) as error:
        load(Env.redis_url, given)
    assert str(error.value) == line


@pytest.mark.parametrize("misplaced", ["-----BEGIN KEY-----\nhunter2\n", "hunter2" * 100, "hunter2"])
def test_an_error_shows_no_secret_that_is_set_instead_of_a_file_name(misplaced: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(lambda env: env.secret("KEY", "what"), {"KEY_FILE": misplaced})
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_settings_that_a_reader_reads_can_be_listed() -> None:
    def read(env: Env) -> None:
        env.port("PORT", 80, "the port")
        env.seconds("LIFE", 86_400.0, "the life")
        env.flag("ON", False, "a switch")
        env.words("WORDS", str, ("b", "a"), "words")
        env.optional_path("PLACE", "a place")
        env.secret("KEY", "the key")
        env.port("PORT", 81, "again")

    assert list_settings(read) == (
        Setting("PORT", "80", "the port"),
        Setting("LIFE", "86400", "the life"),
        Setting("ON", "0", "a switch"),
        Setting("WORDS", "a b", "words"),
        Setting("PLACE", "", "a place"),
        Setting("KEY", "", "the key"),
        Setting("KEY_FILE", "", "file whose first line is KEY, if that is not set"),
    )
