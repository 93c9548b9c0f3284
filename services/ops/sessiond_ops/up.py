"""`make up`: run everything on this machine, in the foreground.

It runs an embedded Redis, sessiond, a webhook, two handlers, a poster and a worker. It restarts a process that ends by
itself. Ctrl-C stops everything: callers first, Redis last.
"""

import faulthandler
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from sessiond_common.env import Env, SettingsError, load
from sessiond_ops.credentials import make_keys, make_secret
from sessiond_ops.embedded_redis import EmbeddedError, EmbeddedRedis
from sessiond_ops.supervisor import BadSettings, Child, stop

POLL_SECONDS: Final = 0.2
READY_SECONDS: Final = 20.0
MODEL_KEYS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")


class _Stop(Exception):
    """A SIGINT or SIGTERM came."""


@dataclass(frozen=True, slots=True)
class UpSettings:
    """Paths, addresses, numbers of processes, and the environment of every process."""

    state: Path
    url: str
    webhook_url: str
    handlers: int
    workers: int
    env: dict[str, str]


def settings_from(environ: Mapping[str, str]) -> UpSettings:
    """Return the settings of this environment. Raises SettingsError."""
    settings = load(read, environ)
    settings.env.update(environ)
    settings.env.update({"SESSIOND_STATE_DIR": str(settings.state), "SESSIOND_URL": settings.url})
    settings.env.setdefault("OUTBOX_DIR", str(settings.state / "outbox"))
    if not (environ.get("WEBHOOK_SECRET") or environ.get("WEBHOOK_SECRET_FILE")):
        settings.env["WEBHOOK_SECRET_FILE"] = str(settings.state / "webhook-secret")
    return settings


def read(env: Env) -> UpSettings:
    """Read the variables that `make up` itself needs; `env` of the result is empty."""
    state = env.state_dir()
    host = env.text("SESSIOND_HOST", "127.0.0.1", "address on which sessiond listens")
    port = env.port("SESSIOND_PORT", 8420, "port on which sessiond listens")
    webhook_host = env.text("WEBHOOK_HOST", "127.0.0.1", "address on which the webhook listens")
    webhook_port = env.port("WEBHOOK_PORT", 8421, "port on which the webhook listens")
    return UpSettings(
        state=state,
        url=env.url("SESSIOND_URL", f"http://{host}:{port}", "URL of sessiond"),
        webhook_url=f"http://{webhook_host}:{webhook_port}",
        handlers=env.count("UP_HANDLERS", 2, "handlers that make up starts"),
        workers=env.count("UP_WORKERS", 1, "workers that make up starts"),
        env={},
    )


def main() -> int:
    """Run until Ctrl-C. Returns 0 then, 1 if Redis cannot run, 2 for bad settings."""
    faulthandler.register(signal.SIGUSR1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise_stop)
    try:
        settings = settings_from(os.environ)
        make_keys(Path(os.environ.get("SESSIOND_KEYS_FILE") or settings.state / "keys"), settings.state / "keys.d")
        make_secret(settings.state / "webhook-secret")
    except (SettingsError, OSError) as error:
        print(f"up: {error}", file=sys.stderr)
        return 2
    redis = None if os.environ.get("REDIS_URL") else EmbeddedRedis(settings.state / "redis", bound=True)
    return _run(settings, redis)


def _raise_stop(number: int, _: FrameType | None) -> None:
    raise _Stop(number)


def _run(settings: UpSettings, redis: EmbeddedRedis | None) -> int:
    layers: list[list[Child]] = []
    try:
        if redis is not None:
            redis.start()
            settings.env["REDIS_URL"] = redis.url
        layers = _children(settings)
        _print_summary(settings)
        _begin(settings, layers)
        while True:
            time.sleep(POLL_SECONDS)
            _restart_ended(redis)
            for child in (child for layer in layers for child in layer):
                child.watch()
    except EmbeddedError as error:
        print(f"up: {error}", file=sys.stderr)
        return 1
    except BadSettings as error:
        print(f"up: {error} cannot run with these settings; see its message above", file=sys.stderr)
        return 2
    except _Stop:
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        stop(layers)
        if redis is not None:
            redis.stop()
        print("up: stopped", file=sys.stderr)


def _restart_ended(redis: EmbeddedRedis | None) -> None:
    """Restart Redis on its data if it has ended. Every accepted write is on disk."""
    if redis is not None and redis.ended():
        print("up: Redis ended by itself; starting it again", file=sys.stderr)
        redis.start()


def _children(settings: UpSettings) -> list[list[Child]]:
    """Return the processes in layers, in the order in which they stop: intake, workers, sessiond."""

    def child(name: str, module: str, patience: float, role: str | None = None) -> Child:
        env = dict(settings.env)
        key = settings.state / "keys.d" / (role or "")
        if role is not None and not env.get("SESSIOND_KEY") and key.exists():
            env["SESSIOND_KEY_FILE"] = str(key)
        return Child(name, module, env, patience)

    handlers = [child(f"handler-{n + 1}", "sessiond_webhook.handler", 8.0, "handler") for n in range(settings.handlers)]
    workers = [child(f"worker-{n + 1}", "sessiond_worker", 8.0, "worker") for n in range(settings.workers)]
    # The poster never uses this key, but it must know every secret to keep it out of its posts.
    poster = child("poster", "sessiond_webhook.poster", 8.0, "handler")
    return [
        [child("webhook", "sessiond_webhook", 6.0, "handler")],
        [*handlers, *workers, poster],
        [child("sessiond", "sessiond.main", 20.0)],
    ]


def _begin(settings: UpSettings, layers: list[list[Child]]) -> None:
    """Start sessiond first, so that the others need not wait for it and log warnings."""
    layers[-1][0].start()
    ends = time.monotonic() + READY_SECONDS
    while not _ready(settings.url) and time.monotonic() < ends:
        layers[-1][0].watch()
        time.sleep(0.05)
    for child in (child for layer in layers[:-1] for child in layer):
        child.start()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _print_summary(settings: UpSettings) -> None:
    def show(text: str) -> None:
        print(f"up: {text}", file=sys.stderr)

    show(f"sessiond on {settings.url}, keys in {settings.state / 'keys.d'}; Ctrl-C stops everything")
    secret_file = settings.env.get("WEBHOOK_SECRET_FILE", "…")
    show(f"GitHub deliveries go to {settings.webhook_url}/github, secret in {secret_file}")
    if not any(settings.env.get(name) for name in MODEL_KEYS):
        show("no model key: turns will fail; set ANTHROPIC_API_KEY")
    if not any(settings.env.get(name) for name in ("GITHUB_TOKEN", "GITHUB_TOKEN_FILE", "GITHUB_APP_ID")):
        show(f"no GitHub token: answers go to {settings.env['OUTBOX_DIR']}; set GITHUB_TOKEN to post them")


if __name__ == "__main__":
    sys.exit(main())
