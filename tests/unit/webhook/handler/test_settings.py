"""The handler's settings: valid and invalid values of every variable, and all errors in one line."""

import pytest

from sessiond_common.env import list_settings
from sessiond_webhook.handler.handler import main
from sessiond_webhook.handler.settings import HandlerSettings, from_env, read
from support.settings import (
    COUNT,
    LOGS,
    NO_FILE,
    PORT,
    REDIS,
    SECONDS,
    URL,
    assert_all_named,
    assert_exit_2,
    assert_no_value_shown,
    error_line,
    value_at,
)

GOOD = [
    ("REDIS_URL", "unix:///sock", "redis_url", "unix:///sock"),
    ("SESSIOND_URL", "https://s/", "sessiond_url", "https://s"),
    ("SESSIOND_KEY", "k", "sessiond_key", "k"),
    ("SESSIOND_LEASE_TTL", "12", "lease_ttl", 12.0),
    ("RUNS_PER_SESSION", "4", "runs_per_session", 4),
    ("RUN_TTL", "3", "run_ttl", 3.0),
    ("ANSWER_TURN_SECONDS", "60", "turn_timeout", 60.0),
    ("AGENT_BROKEN_PATIENCE", "5", "broken_patience", 5.0),
    ("HANDLER_LOG_FORMAT", "json", "log_format", "json"),
    ("METRICS_PORT", "9100", "metrics.port", 9100),
    ("METRICS_HOST", "0.0.0.0", "metrics.host", "0.0.0.0"),
]
BAD = {
    "REDIS_URL": ("http://x", REDIS),
    "SESSIOND_URL": ("localhost", URL),
    "SESSIOND_KEY_FILE": ("/not/there", NO_FILE),
    "SESSIOND_LEASE_TTL": ("0", SECONDS),
    "RUNS_PER_SESSION": ("0", COUNT),
    "RUN_TTL": ("soon", SECONDS),
    "ANSWER_TURN_SECONDS": ("-1", SECONDS),
    "AGENT_BROKEN_PATIENCE": ("1e9", SECONDS),
    "HANDLER_LOG_FORMAT": ("JSON", LOGS),
    "METRICS_PORT": ("0", PORT),
}
FREE = {"SESSIOND_KEY", "METRICS_HOST"}
FILES = {"REDIS_URL_FILE", "SESSIOND_KEY_FILE"}


@pytest.mark.parametrize(("name", "text", "path", "value"), GOOD)
def test_each_variable_accepts_its_good_values(name: str, text: str, path: str, value: object) -> None:
    assert value_at(from_env({name: text}), path) == value


@pytest.mark.parametrize("name", BAD)
def test_each_bad_value_is_refused_with_its_reason(name: str) -> None:
    text, reason = BAD[name]
    assert error_line(from_env, {name: text}) == f"{name}: {reason}"


def test_every_variable_has_rows_in_both_tables() -> None:
    names = {one.name for one in list_settings(read)}
    assert names == {name for name, *_ in GOOD} | FILES
    assert names == {*BAD} | FREE | FILES


def test_one_line_names_all_errors() -> None:
    assert_all_named(from_env, {}, BAD)


def test_without_variables_the_defaults_apply() -> None:
    assert from_env({}) == HandlerSettings("redis://127.0.0.1:6379/0", "http://127.0.0.1:8420", "")


def test_no_error_shows_a_value() -> None:
    assert_no_value_shown(from_env, [one.name for one in list_settings(read)])


def test_bad_settings_give_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"handler: RUN_TTL: {SECONDS}; METRICS_PORT: {PORT}"
    assert_exit_2(main, line, {"RUN_TTL": "0", "METRICS_PORT": "0"}, monkeypatch)
