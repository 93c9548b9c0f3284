"""Settings of what is posted: GitHub, the outbox without it, the poster's times."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sessiond_common.env import Env, SettingsError
from sessiond_webhook.poster.secret_scan import Secrets, named_secrets, secrets

DEFAULT_API: Final = "https://api.github.com"


@dataclass(frozen=True, slots=True)
class GithubSettings:
    """How to reach GitHub: with a token, or as an app; with neither there is only the outbox."""

    api_url: str = DEFAULT_API
    token: str = field(default="", repr=False)
    app_id: int | None = None
    app_key: str = field(default="", repr=False)
    """The app's private key, PEM."""
    installation: int | None = None
    """Of comments whose delivery named none."""
    bot_id: int | None = None
    """Our account's id; GitHub is asked once when it is not set."""

    @property
    def configured(self) -> bool:
        """Whether there is anything to log in with."""
        return bool(self.token) or self.app_id is not None


@dataclass(frozen=True, slots=True)
class PostTimes:
    """Seconds."""

    deadline: int = 15
    """Of one HTTP call (to connect, and between two reads)."""
    lag: float = 10.0
    """How long after a call's deadline what it did may still not be listed."""
    pace: float = 1.0
    """Between two writes of one run, as GitHub asks for."""
    backoff: float = 2.0
    """The first pause after a failure; each one after it is twice as long."""
    longest: float = 300.0
    """The longest pause."""
    claim: int = 60
    """How long a thread is one run's without a sign of life of it; far above `deadline`."""

    @property
    def settle(self) -> float:
        """After a write began whose outcome is not known: until the listing is believed."""
        return self.deadline + self.lag


@dataclass(frozen=True, slots=True)
class PosterSettings:
    """All that a poster needs."""

    redis_url: str
    github: GithubSettings
    outbox: Path
    times: PostTimes = PostTimes()
    secrets: Secrets = field(default_factory=Secrets)
    log_format: str = "console"


def github_settings(environ: Mapping[str, str]) -> GithubSettings:
    """Raises SettingsError."""
    env = Env(environ)
    token, app_id = env.secret("GITHUB_TOKEN"), env.read("GITHUB_APP_ID", _id, None)
    key = env.read("GITHUB_APP_KEY_FILE", _private_key, "")
    if token and app_id is not None:
        raise SettingsError("GITHUB_TOKEN and GITHUB_APP_ID: one of them, not both")
    if (app_id is None) != (not key):
        raise SettingsError("GITHUB_APP_ID and GITHUB_APP_KEY_FILE: both or neither")
    return GithubSettings(
        env.url("GITHUB_API_URL", DEFAULT_API), token, app_id, key,
        env.read("GITHUB_INSTALLATION_ID", _id, None), env.read("BOT_ID", _id, None),
    )  # fmt: skip


def poster_settings(environ: Mapping[str, str]) -> PosterSettings:
    """Raises SettingsError."""
    env = Env(environ)
    times = PostTimes()
    claim = env.count("POSTER_CLAIM", times.claim)
    return PosterSettings(
        redis_url=env.redis_url(),
        github=github_settings(environ),
        outbox=env.path("OUTBOX_DIR", env.path("SESSIOND_STATE_DIR", Path(".state")) / "outbox"),
        times=PostTimes(
            deadline=_within(env.count("POSTER_DEADLINE", times.deadline), claim // 3),
            lag=env.seconds("POSTER_LAG", times.lag),
            pace=env.seconds("POSTER_PACE", times.pace),
            backoff=env.seconds("POSTER_BACKOFF", times.backoff),
            claim=claim,
        ),
        secrets=all_secrets(environ),
        log_format=env.one_of("POSTER_LOG_FORMAT", ("console", "json"), "console"),
    )


def all_secrets(environ: Mapping[str, str]) -> Secrets:
    """Every secret that this process is configured with, from variables and from the files that they name."""
    env = Env(environ)
    whole = dict(environ)
    for name in environ:
        if name.endswith("_FILE"):
            whole.setdefault(name.removesuffix("_FILE"), env.read(name, _text_if_any, ""))
    return secrets(named_secrets(whole))


def _within(seconds: int, most: int) -> int:
    if seconds > most:  # a call must not outlive the claim under which it began
        raise SettingsError(f"POSTER_DEADLINE: must be {most} or less, a third of POSTER_CLAIM")
    return seconds


def _id(text: str) -> int | None:
    number = int(text)
    if number < 1:
        raise ValueError("must be an id, 1 or more")
    return number


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error


def _text_if_any(path: str) -> str:
    """Other variables may end in _FILE too, and name what is no text or not there."""
    try:
        return _text(path)
    except ValueError:
        return ""


def _private_key(path: str) -> str:
    # Imported here: it takes a tenth of a second, and only an app needs it.
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _text(path)
    try:
        if not isinstance(load_pem_private_key(text.encode(), password=None), RSAPrivateKey):
            raise ValueError("not an RSA key")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a private RSA key in PEM") from error
    return text
