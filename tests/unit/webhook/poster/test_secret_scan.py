"""The scan finds secrets, also in simple encodings."""

import base64
import html
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from sessiond_common.env import SettingsError
from sessiond_webhook.poster.secret_scan import Secrets, named_secrets, secrets
from sessiond_webhook.poster.settings import all_secrets, poster_settings

SECRET = "p&ss/wörd+0123456"

DISGUISES: dict[str, Callable[[str], str]] = {
    "none": lambda s: s,
    "in a word": lambda s: f"abc{s}def",
    "line ends": lambda s: "\n".join(s),
    "invisible": lambda s: "\u200b".join(s),
    "url": lambda s: quote(s, safe=""),
    "url, all of it": lambda s: "".join(f"%{byte:02x}" for byte in s.encode()),
    "form": lambda s: quote(s, safe="").replace("%20", "+"),
    "html": html.escape,
    "hex": lambda s: s.encode().hex(),
    "HEX": lambda s: s.encode().hex().upper(),
}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
def test_a_secret_is_found(disguise: Callable[[str], str]) -> None:
    found = secrets([("MODEL_KEY", SECRET), ("OTHER", "another-secret")])
    assert found.found(f"It says: {disguise(SECRET)}.") == "MODEL_KEY"
    assert found.found("It says: nothing of the kind.") is None


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_is_found_at_any_position_in_base64(before: int, after: int, encode: Callable[[bytes], bytes]) -> None:
    text = encode(b"\xff" * before + SECRET.encode() + b"\xff" * after).decode()
    wrapped = "\n".join(text[at : at + 10] for at in range(0, len(text), 10))
    found = secrets([("KEY", SECRET)])
    assert found.found(text) == found.found(f"See:\n{wrapped}\n") == "KEY"


def test_one_line_of_a_private_key_is_found() -> None:
    lines = [base64.b64encode(bytes([n] * 48)).decode() for n in range(3)]
    key = "\n".join(["-----BEGIN RSA PRIVATE KEY-----", *lines, "-----END RSA PRIVATE KEY-----", ""])
    found = secrets([("GITHUB_APP_KEY", key)])
    assert found.found(f"a {lines[1]} b") == "GITHUB_APP_KEY"
    assert found.found("-----BEGIN RSA PRIVATE KEY-----") is None


def test_short_values_are_not_searched_but_reported() -> None:
    found = secrets([("SHORT_KEY", "1234567"), ("EMPTY_KEY", ""), ("LONG_KEY", "12345678")])
    assert found.unsearched == ("SHORT_KEY",)
    assert found.found("1234567") is None
    assert found.found("12345678") == "LONG_KEY"


def test_the_variables_with_secrets_are_found(tmp_path: Path) -> None:
    environ = {
        "WEBHOOK_SECRET": "aaaaaaaa1", "WEBHOOK_SECRET_PREVIOUS": "aaaaaaaa2", "GITHUB_TOKEN": "aaaaaaaa3",
        "SESSIOND_KEY": "aaaaaaaa4", "ANTHROPIC_API_KEY": "aaaaaaaa5", "ANTHROPIC_AUTH_TOKEN": "aaaaaaaa6",
        "CLAUDE_CODE_OAUTH_TOKEN": "aaaaaaaa7", "REDIS_URL": "redis://name:p%40ssword1@127.0.0.1:1/0",
        "SESSIOND_KEYS_FILE": "/not/there", "HOME": "/home/somebody", "BOT_LOGIN": "sessiond-bot",
    }  # fmt: skip
    assert {name for name, _ in named_secrets(environ)} == set(environ) - {"SESSIOND_KEYS_FILE", "HOME", "BOT_LOGIN"}
    assert secrets(named_secrets(environ)).found("p@ssword1") == "REDIS_URL"
    file = tmp_path / "key"
    file.write_text("aaaaaaaa8\n")
    assert all_secrets({"GITHUB_TOKEN_FILE": str(file)}).found("aaaaaaaa8") == "GITHUB_TOKEN"


def test_no_representation_shows_a_secret() -> None:
    settings = poster_settings({"GITHUB_TOKEN": "ghp_0123456789"})
    assert "0123456789" not in repr(settings)
    assert "12345678" not in repr(Secrets((("A", frozenset({"12345678"})),)))


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"GITHUB_TOKEN": "ghp_1234", "GITHUB_APP_ID": "1"}, "GITHUB_TOKEN"),
        ({"GITHUB_APP_ID": "1"}, "GITHUB_APP_KEY_FILE"),
        ({"GITHUB_APP_ID": "1", "GITHUB_APP_KEY_FILE": "/not/there"}, "GITHUB_APP_KEY_FILE"),
        ({"GITHUB_APP_ID": "1", "GITHUB_APP_KEY_FILE": __file__}, "GITHUB_APP_KEY_FILE"),
        ({"BOT_ID": "bot"}, "BOT_ID"),
        ({"GITHUB_API_URL": "api.github.com"}, "GITHUB_API_URL"),
        ({"POSTER_DEADLINE": "30"}, "POSTER_DEADLINE"),
        ({"POSTER_LAG": "-1"}, "POSTER_LAG"),
    ],
)
def test_bad_settings_give_one_line(environ: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=rf"^[^\n]*{named}[^\n]*$"):
        poster_settings(environ)
