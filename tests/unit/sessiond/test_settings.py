"""sessiond's settings: valid and invalid values of every variable, and all errors in one line."""

import os
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from sessiond.agent.process.user import User
from sessiond.lock.rules import Times
from sessiond.main import main
from sessiond.settings import TIMES, Settings, from_env, read
from sessiond_common.env import list_settings
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
    ("REDIS_URL", "unix:///run/redis.sock", "redis_url", "unix:///run/redis.sock"),
    ("SESSIOND_STATE_DIR", "/state", "state_dir", Path("/state")),
    ("SESSIOND_STATE_DIR", "/state", "keys_file", Path("/state/keys")),
    ("SESSIOND_HOST", " 0.0.0.0 ", "host", "0.0.0.0"),
    ("SESSIOND_HOST", "::1", "url", "http://::1:8420"),
    ("SESSIOND_PORT", "9000", "port", 9000),
    ("SESSIOND_PORT", "9000", "url", "http://127.0.0.1:9000"),
    ("SESSIOND_URL", "https://sessiond.example/", "url", "https://sessiond.example"),
    ("SESSIOND_KEYS_FILE", "/etc/keys", "keys_file", Path("/etc/keys")),
    ("SESSIOND_INSTANCE", "blue", "instance", "blue"),
    ("SESSIOND_AGENT_COMMAND", "agent --flag 'two words'", "agent_command", ("agent", "--flag", "two words")),
    ("SESSIOND_MODEL", "claude-other", "model", "claude-other"),
    ("SESSIOND_BACKGROUND_TASKS", "on", "background_tasks", True),
    ("SESSIOND_WEB_FETCH_CHECK", "0", "web_fetch_check", False),
    ("SESSIOND_CHECKOUTS", "/work", "checkouts", Path("/work")),
    ("SESSIOND_MAX_AGENTS", "2", "max_agents", 2),
    ("SESSIOND_HOOKS_DIR", "/hooks", "hooks_dir", Path("/hooks")),
    ("SESSIOND_LOG_FORMAT", "json", "log_format", "json"),
    *((f"SESSIOND_{name.upper()}", "7.5", f"times.{name}", 7.5) for name in TIMES),
]
BAD = {
    "REDIS_URL": ("http://x", REDIS),
    "SESSIOND_PORT": ("many", PORT),
    "SESSIOND_URL": ("localhost", URL),
    "SESSIOND_AGENT_COMMAND": ("agent 'unclosed", "No closing quotation"),
    "SESSIOND_BACKGROUND_TASKS": ("maybe", "must be 1 or 0"),
    "SESSIOND_WEB_FETCH_CHECK": ("maybe", "must be 1 or 0"),
    "SESSIOND_MAX_AGENTS": ("0", COUNT),
    "SESSIOND_LOG_FORMAT": ("xml", LOGS),
    **{f"SESSIOND_{name.upper()}": ("-1", SECONDS) for name in TIMES},
}
FREE = {"SESSIOND_STATE_DIR", "SESSIOND_HOST", "SESSIOND_KEYS_FILE", "SESSIOND_INSTANCE", "SESSIOND_MODEL",
        "SESSIOND_CHECKOUTS", "SESSIOND_HOOKS_DIR"}  # fmt: skip
"""Variables that accept any text."""


@pytest.mark.parametrize(("name", "text", "path", "value"), GOOD)
def test_each_variable_accepts_its_good_values(name: str, text: str, path: str, value: object) -> None:
    assert value_at(from_env({name: text}), path) == value


@pytest.mark.parametrize("name", BAD)
def test_each_bad_value_is_refused_with_its_reason(name: str) -> None:
    text, reason = BAD[name]
    assert error_line(from_env, {name: text}) == f"{name}: {reason}"


def test_every_variable_has_rows_in_both_tables() -> None:
    names = {one.name for one in list_settings(read)}
    assert names == {name for name, *_ in GOOD} | {"REDIS_URL_FILE", "SESSIOND_AGENT_UID", "SESSIOND_AGENT_GID"}
    assert names == {*BAD} | FREE | {"REDIS_URL_FILE", "SESSIOND_AGENT_UID", "SESSIOND_AGENT_GID"}


def test_one_line_names_all_errors() -> None:
    assert_all_named(from_env, {}, BAD)
    line = error_line(from_env, {"SESSIOND_PORT": "0", "SESSIOND_LEASE_TTL": "0"})
    assert line == f"SESSIOND_PORT: {PORT}; SESSIOND_LEASE_TTL: {SECONDS}"
    assert error_line(from_env, {"REDIS_URL_FILE": "/not/there"}) == f"REDIS_URL_FILE: {NO_FILE}"


def test_no_error_shows_a_value() -> None:
    assert_no_value_shown(from_env, [one.name for one in list_settings(read)])


@pytest.mark.parametrize(
    ("uid", "gid"), [("5", ""), ("", "6"), ("0", "0"), ("root", "root"), ("-1", "6"), ("5", str(2**32 - 1))]
)
def test_the_user_of_the_agent_is_complete_and_never_root(uid: str, gid: str) -> None:
    line = error_line(from_env, {"SESSIOND_AGENT_UID": uid, "SESSIOND_AGENT_GID": gid, "SESSIOND_PORT": "x"})
    both = "SESSIOND_AGENT_UID, SESSIOND_AGENT_GID: must both be numbers above 0, or both be empty"
    assert line == f"SESSIOND_PORT: {PORT}; {both}"


def test_the_user_of_the_agent_comes_from_its_variables() -> None:
    assert from_env({"SESSIOND_AGENT_UID": "5", "SESSIOND_AGENT_GID": "6"}).agent_user == User(5, 6)
    assert from_env({}).agent_user is None


def test_without_variables_the_defaults_apply() -> None:
    found = from_env({})
    assert re.fullmatch(rf"{re.escape(found.host_name)}-{os.getpid()}-[0-9a-f]{{6}}", found.instance)
    assert replace(found, instance="", host_name="") == Settings()
    assert from_env({one.name: "" for one in list_settings(read)}).port == Settings().port


def test_every_time_has_its_variable() -> None:
    assert list(TIMES) == [one.name for one in fields(Times) if one.name != "long_wait"] + ["long_wait"]


def test_bad_settings_give_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"sessiond: SESSIOND_PORT: {PORT}; SESSIOND_LEASE_TTL: {SECONDS}"
    assert_exit_2(lambda: main(["--check"]), line, {"SESSIOND_PORT": "0", "SESSIOND_LEASE_TTL": "0"}, monkeypatch)
