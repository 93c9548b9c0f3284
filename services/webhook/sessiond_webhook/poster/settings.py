"""Settings of the poster, from the environment: GitHub, the outbox that replaces it, times."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from sessiond_common.env import Env, file_text, load, whole
from sessiond_common.metrics.settings import OFF, MetricsSettings, read_metrics
from sessiond_webhook.poster.secret_scan import Secrets, named_secrets, secrets

DEFAULT_API: Final = "https://api.github.com"


@dataclass(frozen=True, slots=True)
class GithubSettings:
    """How to reach GitHub: with a token or as an app. With neither, answers go to the outbox."""

    api_url: str = DEFAULT_API
    token: str = field(default="", repr=False)
    app_id: int | None = None
    app_key: str = field(default="", repr=False)
    """The app's private key, PEM."""
    installation: int | None = None
    """The installation of comments whose delivery names none."""
    bot_id: int | None = None
    """The id of our account; without it, the poster asks GitHub once."""

    @property
    def configured(self) -> bool:
        """Whether there is a token or an app."""
        return bool(self.token) or self.app_id is not None


@dataclass(frozen=True, slots=True)
class PostTimes:
    """Times of the poster, in seconds."""

    deadline: int = 15
    """Time limit of one HTTP call: to connect, and between two reads."""
    lag: float = 10.0
    """How long after a call's deadline GitHub's lists may still lack its effect."""
    pace: float = 1.0
    """Pause between two writes of one run, as GitHub asks for."""
    backoff: float = 2.0
    """First pause after a failure; each further pause is twice as long."""
    longest: float = 300.0
    """Longest pause."""
    lock_ttl: int = 60
    """How long a silent run keeps the lock of its thread. It must be much longer than `deadline`."""

    @property
    def settle(self) -> float:
        """Time from the start of a write of unknown outcome until the list of comments is complete."""
        return self.deadline + self.lag


@dataclass(frozen=True, slots=True)
class PosterSettings:
    """How one poster runs."""

    redis_url: str
    github: GithubSettings
    outbox: Path
    times: PostTimes = PostTimes()
    secrets: Secrets = field(default_factory=Secrets)
    log_format: str = "console"
    metrics: MetricsSettings = OFF


def poster_settings(environ: Mapping[str, str]) -> PosterSettings:
    """Return the settings of this environment. Raises SettingsError."""
    settings = load(read, environ)
    return replace(settings, secrets=all_secrets(environ))


def read(env: Env) -> PosterSettings:
    """Read all variables of the poster. `secrets` stays empty: the secrets are in variables of every program."""
    return PosterSettings(
        redis_url=env.redis_url(),
        github=_github(env),
        outbox=env.path("OUTBOX_DIR", env.state_dir() / "outbox", "directory of answers, without a login at GitHub"),
        times=_times(env),
        log_format=env.log_format("POSTER_LOG_FORMAT"),
        metrics=read_metrics(env),
    )


def _github(env: Env) -> GithubSettings:
    token = env.secret("GITHUB_TOKEN", "token that posts answers")
    app_id = env.read("GITHUB_APP_ID", _id, None, "id of the app that posts answers")
    key = env.read("GITHUB_APP_KEY_FILE", _private_key, "", "file of the app's private key (PEM, RSA)")
    if token and app_id is not None:
        env.refuse(("GITHUB_TOKEN", "GITHUB_APP_ID"), "set one of them, not both")
    if (app_id is None) != (not key):
        env.refuse(("GITHUB_APP_ID", "GITHUB_APP_KEY_FILE"), "set both or neither")
    return GithubSettings(
        api_url=env.url("GITHUB_API_URL", DEFAULT_API, "GitHub's API; https://HOST/api/v3 for an Enterprise Server"),
        token=token,
        app_id=app_id,
        app_key=key,
        installation=env.read("GITHUB_INSTALLATION_ID", _id, None, "installation, for deliveries that name none"),
        bot_id=env.read("BOT_ID", _id, None, "number of our account, for an app its bot user's; GitHub is asked once"),
    )


def _times(env: Env) -> PostTimes:
    times = PostTimes()
    lock_ttl = env.count("POSTER_CLAIM", times.lock_ttl, "seconds that a silent run keeps the lock of its thread")
    deadline = env.count("POSTER_DEADLINE", times.deadline, "seconds of one HTTP call; at most a third of POSTER_CLAIM")
    if deadline > lock_ttl // 3:  # a call must end before the lock under which it began
        reason = f"the deadline must be at most a third of POSTER_CLAIM: {lock_ttl // 3}"
        env.refuse(("POSTER_DEADLINE", "POSTER_CLAIM"), reason)
    return PostTimes(
        deadline=deadline,
        lag=env.seconds("POSTER_LAG", times.lag, "time for which GitHub may not list what was posted"),
        pace=env.seconds("POSTER_PACE", times.pace, "pause between two writes of one run"),
        backoff=env.seconds("POSTER_BACKOFF", times.backoff, "first pause after a failure"),
        lock_ttl=lock_ttl,
    )


def all_secrets(environ: Mapping[str, str]) -> Secrets:
    """Return every secret of this process, from variables and from the files that variables name."""
    found = dict(environ)
    for name, path in environ.items():
        if name.endswith("_FILE"):
            found.setdefault(name.removesuffix("_FILE"), _text_or_empty(path) if path else "")
    return secrets(named_secrets(found))


def _text_or_empty(path: str) -> str:
    """Return the file's text, or an empty text. Other variables end in _FILE too, and their files may be anything."""
    try:
        return file_text(path)
    except ValueError:
        return ""


def _id(text: str) -> int:
    return whole(text, None, "must be an id, a whole number of 1 or more")


def _private_key(path: str) -> str:
    # Imported here, because it takes a tenth of a second and only an app needs it.
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = file_text(path)
    try:
        if not isinstance(load_pem_private_key(text.encode(), password=None), RSAPrivateKey):
            raise ValueError("not an RSA key")
    except (ValueError, TypeError) as error:
        raise ValueError("the file is not a private RSA key in PEM") from error
    return text
