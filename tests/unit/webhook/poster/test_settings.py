"""The poster's settings: valid and invalid values of every variable, and all errors in one line."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sessiond_common.env import list_settings
from sessiond_webhook.poster.poster import main
from sessiond_webhook.poster.settings import GithubSettings, PosterSettings, poster_settings, read
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

ID = "must be an id, a whole number of 1 or more"
GOOD = [
    ("REDIS_URL", "unix:///sock", "redis_url", "unix:///sock"),
    ("GITHUB_TOKEN", " ghp ", "github.token", "ghp"),
    ("GITHUB_API_URL", "https://ghe/api/v3/", "github.api_url", "https://ghe/api/v3"),
    ("GITHUB_INSTALLATION_ID", "9", "github.installation", 9),
    ("BOT_ID", "17", "github.bot_id", 17),
    ("SESSIOND_STATE_DIR", "/state", "outbox", Path("/state/outbox")),
    ("OUTBOX_DIR", "/out", "outbox", Path("/out")),
    ("POSTER_CLAIM", "90", "times.lock_ttl", 90),
    ("POSTER_DEADLINE", "20", "times.deadline", 20),
    ("POSTER_LAG", "1.5", "times.lag", 1.5),
    ("POSTER_PACE", "0.1", "times.pace", 0.1),
    ("POSTER_BACKOFF", "4", "times.backoff", 4.0),
    ("POSTER_LOG_FORMAT", "json", "log_format", "json"),
    ("METRICS_PORT", "9100", "metrics.port", 9100),
    ("METRICS_HOST", "0.0.0.0", "metrics.host", "0.0.0.0"),
]
BAD = {
    "REDIS_URL": ("http://x", REDIS),
    "GITHUB_TOKEN_FILE": ("/not/there", NO_FILE),
    "GITHUB_APP_ID": ("app", ID),
    "GITHUB_APP_KEY_FILE": ("/not/there", NO_FILE),
    "GITHUB_API_URL": ("api.github.com", URL),
    "GITHUB_INSTALLATION_ID": ("0", ID),
    "BOT_ID": ("bot", ID),
    "POSTER_CLAIM": ("1.5", COUNT),
    "POSTER_DEADLINE": ("0", COUNT),
    "POSTER_LAG": ("-1", SECONDS),
    "POSTER_PACE": ("0", SECONDS),
    "POSTER_BACKOFF": ("x", SECONDS),
    "POSTER_LOG_FORMAT": ("xml", LOGS),
    "METRICS_PORT": ("65536", PORT),
}
FREE = {"GITHUB_TOKEN", "SESSIOND_STATE_DIR", "OUTBOX_DIR", "METRICS_HOST"}
APP = {"GITHUB_APP_ID", "GITHUB_APP_KEY_FILE"}
FILES = {"REDIS_URL_FILE", "GITHUB_TOKEN_FILE"}
PAIR = "GITHUB_APP_ID, GITHUB_APP_KEY_FILE: set both or neither"
ONE = "GITHUB_TOKEN, GITHUB_APP_ID: set one of them, not both"


def key_file(place: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (place / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return str(place / "key.pem")


@pytest.mark.parametrize(("name", "text", "path", "value"), GOOD)
def test_each_variable_accepts_its_good_values(name: str, text: str, path: str, value: object) -> None:
    assert value_at(poster_settings({name: text}), path) == value


@pytest.mark.parametrize("name", BAD)
def test_each_bad_value_is_refused_with_its_reason(name: str) -> None:
    text, reason = BAD[name]
    assert error_line(poster_settings, {name: text}) == f"{name}: {reason}"


def test_every_variable_has_rows_in_both_tables() -> None:
    names = {one.name for one in list_settings(read)}
    assert names == {name for name, *_ in GOOD} | APP | FILES
    assert names == {*BAD} | FREE | FILES


def test_one_line_names_all_errors() -> None:
    assert_all_named(poster_settings, {}, BAD)


def test_without_variables_the_defaults_apply() -> None:
    assert poster_settings({}) == PosterSettings("redis://127.0.0.1:6379/0", GithubSettings(), Path(".state/outbox"))


def test_an_app_needs_an_id_and_a_key(tmp_path: Path) -> None:
    file = key_file(tmp_path, rsa.generate_private_key(65537, 2048))
    found = poster_settings({"GITHUB_APP_ID": "12", "GITHUB_APP_KEY_FILE": file}).github
    assert (found.app_id, found.app_key) == (12, Path(file).read_text())
    assert error_line(poster_settings, {"GITHUB_APP_ID": "12"}) == PAIR
    assert error_line(poster_settings, {"GITHUB_APP_KEY_FILE": file}) == PAIR
    both = {"GITHUB_TOKEN": "ghp", "GITHUB_APP_ID": "12"}
    assert error_line(poster_settings, {**both, "GITHUB_APP_KEY_FILE": file}) == ONE
    assert error_line(poster_settings, {**both, "POSTER_LAG": "x"}) == f"POSTER_LAG: {SECONDS}; {ONE}; {PAIR}"


def test_the_key_of_an_app_must_be_rsa(tmp_path: Path) -> None:
    reason = "GITHUB_APP_KEY_FILE: the file is not a private RSA key in PEM"
    for file in (__file__, key_file(tmp_path, ec.generate_private_key(ec.SECP256R1()))):
        assert error_line(poster_settings, {"GITHUB_APP_ID": "12", "GITHUB_APP_KEY_FILE": file}) == reason


def test_the_deadline_of_a_call_is_much_shorter_than_the_lock_of_its_thread() -> None:
    reason = "POSTER_DEADLINE, POSTER_CLAIM: the deadline must be at most a third of POSTER_CLAIM: 20"
    assert error_line(poster_settings, {"POSTER_DEADLINE": "21"}) == reason
    assert poster_settings({"POSTER_DEADLINE": "21", "POSTER_CLAIM": "63"}).times.deadline == 21


def test_no_error_shows_a_value() -> None:
    assert_no_value_shown(poster_settings, [one.name for one in list_settings(read)])


def test_bad_settings_give_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"webhook.poster: POSTER_LAG: {SECONDS}; METRICS_PORT: {PORT}"
    assert_exit_2(main, line, {"POSTER_LAG": "0", "METRICS_PORT": "0"}, monkeypatch)
