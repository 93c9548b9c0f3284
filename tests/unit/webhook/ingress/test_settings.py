"""The ingress's settings: valid and invalid values of every variable, and all errors in one line."""

from pathlib import Path

import pytest

from sessiond_common.env import list_settings
from sessiond_webhook.__main__ import main
from sessiond_webhook.deliveries.authorization import ASSOCIATIONS, DEFAULT_ASSOCIATIONS
from sessiond_webhook.demands.comment import Person
from sessiond_webhook.ingress.settings import from_env, read
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

SECRET = {"WEBHOOK_SECRET": "s"}
GOOD = [
    ("WEBHOOK_SECRET", " one ", "secrets", ("one",)),
    ("WEBHOOK_SECRET_PREVIOUS", "old", "secrets", ("s", "old")),
    ("BOT_LOGIN", "helper", "rules.trigger.login", "helper"),
    ("BOT_LOGIN", "helper", "rules.people.own", Person(0, "User", "helper")),
    ("BOT_ID", "17", "rules.people.own", Person(17, "Bot", "sessiond[bot]")),
    ("BOT_ID", str(2**63 - 1), "rules.people.own.id", 2**63 - 1),
    ("TRIGGER", "label", "rules.trigger.kind.value", "label"),
    ("TRIGGER_LABEL", "ask", "rules.trigger.label", "ask"),
    ("TASK_LABEL", "job", "rules.task_label", "job"),
    ("ALLOWED_ASSOCIATIONS", "owner,NONE", "rules.people.associations", frozenset({"OWNER", "NONE"})),
    ("ALLOWED_ASSOCIATIONS", " , ", "rules.people.associations", DEFAULT_ASSOCIATIONS),
    ("ALLOWED_USERS", "5, 6:bot", "rules.people.listed", (Person(5, "User", ""), Person(6, "Bot", ""))),
    ("REDIS_URL", "unix:///sock", "redis_url", "unix:///sock"),
    ("SESSIOND_URL", "https://s/", "sessiond_url", "https://s"),
    ("SESSIOND_KEY", "k", "sessiond_key", "k"),
    ("WEBHOOK_HOST", "0.0.0.0", "host", "0.0.0.0"),
    ("WEBHOOK_PORT", "80", "port", 80),
    ("WEBHOOK_PROCESSES", "3", "processes", 3),
    ("WEBHOOK_ARRIVAL_SECONDS", "2.5", "arrival_seconds", 2.5),
    ("WEBHOOK_BYTES_IN_FLIGHT", "1024", "bytes_in_flight", 1024),
    ("WEBHOOK_TICKET_SECONDS", "0.5", "ticket_seconds", 0.5),
    ("SWEEP_SECONDS", "5", "sweep_seconds", 5.0),
    ("RUNS_PER_SESSION", "4", "runs_per_session", 4),
    ("WEBHOOK_LOG_FORMAT", "json", "log_format", "json"),
]
NONE_OF = f"is not one of {', '.join(sorted(ASSOCIATIONS))}"
BAD = {
    "WEBHOOK_SECRET_PREVIOUS_FILE": ("/not/there", NO_FILE),
    "BOT_ID": ("helper", "must be the number of an account"),
    "TRIGGER": ("whim", "must be one of mention, label, all"),
    "ALLOWED_ASSOCIATIONS": ("OWNER FRIEND", f"word 2 {NONE_OF}"),
    "ALLOWED_USERS": ("5, mona", "word 2 is not the number of an account, or number:Type"),
    "REDIS_URL": ("http://x", REDIS),
    "SESSIOND_URL": ("localhost", URL),
    "SESSIOND_KEY_FILE": ("/not/there", NO_FILE),
    "WEBHOOK_PORT": ("65536", PORT),
    "WEBHOOK_PROCESSES": ("0", COUNT),
    "WEBHOOK_ARRIVAL_SECONDS": ("0", SECONDS),
    "WEBHOOK_BYTES_IN_FLIGHT": ("1 MB", COUNT),
    "WEBHOOK_TICKET_SECONDS": ("nan", SECONDS),
    "SWEEP_SECONDS": ("inf", SECONDS),
    "RUNS_PER_SESSION": ("-1", COUNT),
    "WEBHOOK_LOG_FORMAT": ("xml", LOGS),
}
FREE = {"WEBHOOK_SECRET", "WEBHOOK_SECRET_PREVIOUS", "BOT_LOGIN", "TRIGGER_LABEL", "TASK_LABEL", "SESSIOND_KEY",
        "WEBHOOK_HOST"}  # fmt: skip
FILES = {"WEBHOOK_SECRET_FILE", "WEBHOOK_SECRET_PREVIOUS_FILE", "SESSIOND_KEY_FILE", "REDIS_URL_FILE"}
UNSIGNED = "WEBHOOK_SECRET: must be set (or WEBHOOK_SECRET_FILE): unsigned deliveries are not accepted"


@pytest.mark.parametrize(("name", "text", "path", "value"), GOOD)
def test_each_variable_accepts_its_good_values(name: str, text: str, path: str, value: object) -> None:
    assert value_at(from_env({**SECRET, name: text}), path) == value


@pytest.mark.parametrize("name", BAD)
def test_each_bad_value_is_refused_with_its_reason(name: str) -> None:
    text, reason = BAD[name]
    assert error_line(from_env, {**SECRET, name: text}) == f"{name}: {reason}"


@pytest.mark.parametrize("text", ["0", "-1", "²", "1.5", str(2**63), "9" * 5000])
def test_an_account_must_be_a_number(text: str) -> None:
    assert error_line(from_env, {**SECRET, "BOT_ID": text}) == "BOT_ID: must be the number of an account"


def test_every_variable_has_rows_in_both_tables() -> None:
    names = {one.name for one in list_settings(read)}
    assert names == {name for name, *_ in GOOD} | FILES
    assert names == {*BAD} | FREE | FILES


def test_one_line_names_all_errors() -> None:
    assert_all_named(from_env, SECRET, BAD)


def test_a_secret_is_required_and_may_come_from_a_file(tmp_path: Path) -> None:
    assert error_line(from_env, {}) == UNSIGNED
    assert error_line(from_env, {"WEBHOOK_SECRET": " "}) == UNSIGNED
    assert error_line(from_env, {"WEBHOOK_PORT": "x"}) == f"WEBHOOK_PORT: {PORT}; {UNSIGNED}"
    assert error_line(from_env, {"WEBHOOK_SECRET_FILE": "/not/there"}) == f"WEBHOOK_SECRET_FILE: {NO_FILE}"
    (tmp_path / "secret").write_text("from file\n")
    assert from_env({"WEBHOOK_SECRET_FILE": str(tmp_path / "secret")}).secrets == ("from file",)
    assert from_env({"WEBHOOK_SECRET_PREVIOUS": "old"}).secrets == ("old",)


def test_no_error_shows_a_value() -> None:
    assert_no_value_shown(from_env, [one.name for one in list_settings(read)])
    shown = repr(from_env({"WEBHOOK_SECRET": "hunter2", "SESSIOND_KEY": "hunter3"}))
    assert "hunter" not in shown


def test_bad_settings_give_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"webhook: WEBHOOK_PORT: {PORT}; {UNSIGNED}"
    assert_exit_2(lambda: main(["--check"]), line, {"WEBHOOK_PORT": "0"}, monkeypatch)
