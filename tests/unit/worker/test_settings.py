"""The worker's settings: valid and invalid values of every variable, and all errors in one line."""

from pathlib import Path

import pytest

from sessiond_common.env import list_settings
from sessiond_worker.__main__ import main
from sessiond_worker.settings import from_env, read
from sessiond_worker.tasks.model import TaskBudget
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

KEY = {"SESSIOND_KEY": "k"}
GOOD = [
    ("REDIS_URL", "unix:///sock", "redis_url", "unix:///sock"),
    ("SESSIOND_URL", "https://s/", "sessiond_url", "https://s"),
    ("SESSIOND_KEY", " key ", "sessiond_key", "key"),
    ("SESSIOND_LEASE_TTL", "12", "lease_ttl", 12.0),
    ("TASK_TURNS", "3", "budget", TaskBudget(3, 120.0, None)),
    ("TASK_MINUTES", "4.5", "budget", TaskBudget(20, 4.5, None)),
    ("TASK_USD", "0.75", "budget", TaskBudget(20, 120.0, 0.75)),
    ("WORKER_SWEEP_SECONDS", "5", "sweep_seconds", 5.0),
    ("WORKER_CLAIM_SECONDS", "6", "run_lease_ttl", 6.0),
    ("WORKER_RETRY_SECONDS", "7", "retry_seconds", 7.0),
    ("WORKER_FAILURES", "8", "failures_allowed", 8),
    ("WORKER_BROKEN_SECONDS", "9", "broken_patience", 9.0),
    ("WORKER_HOOKS_DIR", " /hooks ", "hooks_dir", Path("/hooks")),
    ("WORKER_HOOKS_DIR", " ", "hooks_dir", None),
    ("WORKER_LOG_FORMAT", "json", "log_format", "json"),
    ("METRICS_PORT", "9100", "metrics.port", 9100),
    ("METRICS_HOST", "0.0.0.0", "metrics.host", "0.0.0.0"),
]
BAD = {
    "REDIS_URL": ("http://x", REDIS),
    "SESSIOND_URL": ("localhost", URL),
    "SESSIOND_LEASE_TTL": ("0", SECONDS),
    "TASK_TURNS": ("0", COUNT),
    "TASK_MINUTES": ("-1", SECONDS),
    "TASK_USD": ("$5", SECONDS),
    "WORKER_SWEEP_SECONDS": ("x", SECONDS),
    "WORKER_CLAIM_SECONDS": ("nan", SECONDS),
    "WORKER_RETRY_SECONDS": ("0", SECONDS),
    "WORKER_FAILURES": ("none", COUNT),
    "WORKER_BROKEN_SECONDS": ("1e9", SECONDS),
    "WORKER_LOG_FORMAT": ("xml", LOGS),
    "METRICS_PORT": ("x", PORT),
}
FREE = {"SESSIOND_KEY", "WORKER_HOOKS_DIR", "METRICS_HOST"}
FILES = {"REDIS_URL_FILE", "SESSIOND_KEY_FILE"}
NO_KEY = "SESSIOND_KEY: must be set to a key with the role worker (or SESSIOND_KEY_FILE)"


@pytest.mark.parametrize(("name", "text", "path", "value"), GOOD)
def test_each_variable_accepts_its_good_values(name: str, text: str, path: str, value: object) -> None:
    assert value_at(from_env({**KEY, name: text}), path) == value


@pytest.mark.parametrize("name", BAD)
def test_each_bad_value_is_refused_with_its_reason(name: str) -> None:
    text, reason = BAD[name]
    assert error_line(from_env, {**KEY, name: text}) == f"{name}: {reason}"


def test_every_variable_has_rows_in_both_tables() -> None:
    names = {one.name for one in list_settings(read)}
    assert names == {name for name, *_ in GOOD} | FILES
    assert names == {*BAD} | FREE | FILES


def test_one_line_names_all_errors() -> None:
    assert_all_named(from_env, KEY, BAD)


def test_a_key_is_required_and_may_come_from_a_file(tmp_path: Path) -> None:
    assert error_line(from_env, {}) == NO_KEY
    assert error_line(from_env, {"TASK_TURNS": "x"}) == f"TASK_TURNS: {COUNT}; {NO_KEY}"
    assert error_line(from_env, {"SESSIOND_KEY_FILE": "/not/there"}) == f"SESSIOND_KEY_FILE: {NO_FILE}"
    (tmp_path / "key").write_text("from file\n")
    assert from_env({"SESSIOND_KEY_FILE": str(tmp_path / "key")}).sessiond_key == "from file"


def test_no_error_shows_a_value() -> None:
    assert_no_value_shown(from_env, [one.name for one in list_settings(read)])


def test_bad_settings_give_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"worker: METRICS_PORT: {PORT}; {NO_KEY}"
    assert_exit_2(lambda: main([]), line, {"METRICS_PORT": "0"}, monkeypatch)


def test_unset_variables_keep_their_defaults() -> None:
    found = from_env({"SESSIOND_KEY": "k", "TASK_USD": "2.5"})
    assert (found.budget, found.sweep_seconds, found.run_lease_ttl) == (TaskBudget(20, 120.0, 2.5), 30.0, 15.0)
