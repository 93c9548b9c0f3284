"""`make up`: run everything on this machine, in the foreground.

That is an embedded Redis, sessiond, a webhook, two handlers, a poster and a worker. A process that ends by itself is
restarted. Ctrl-C stops all: callers first, Redis last.
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

from sessiond_common.env import Env, SettingsError
from sessiond_ops.credentials import make_keys, make_secret
from sessiond_ops.embedded_redis import EmbeddedError, EmbeddedRedis
from sessiond_ops.supervisor import BadSettings, Child, stop

POLL_SECONDS: Final = 0.2
READY_SECONDS: Final = 20.0
MODEL_KEYS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")


class _Stop(Exception):
    """A SIGINT or SIGTERM came."""


@dataclass(frozen=True, slots=True)
class Place:
    """Paths, addresses, numbers of processes, and the environment of every process."""

    state: Path
    url: str
    webhook_url: str
    handlers: int
    workers: int
    env: dict[str, str]


def place_from(environ: Mapping[str, str]) -> Place:
    """Read the environment. Raises SettingsError."""
    env = Env(environ)
    state = env.path("SESSIOND_STATE_DIR", Path(".state"))
    host, port = env.text("SESSIOND_HOST", "127.0.0.1"), env.port("SESSIOND_PORT", 8420)
    webhook = env.text("WEBHOOK_HOST", "127.0.0.1"), env.port("WEBHOOK_PORT", 8421)
    url = env.url("SESSIOND_URL", f"http://{host}:{port}")
    given = {**environ, "SESSIOND_STATE_DIR": str(state), "SESSIOND_URL": url}
    given.setdefault("OUTBOX_DIR", str(state / "outbox"))
    if not (environ.get("WEBHOOK_SECRET") or environ.get("WEBHOOK_SECRET_FILE")):
        given["WEBHOOK_SECRET_FILE"] = str(state / "webhook-secret")
    return Place(
        state, url, f"http://{webhook[0]}:{webhook[1]}", env.count("UP_HANDLERS", 2), env.count("UP_WORKERS", 1), given
    )


def main() -> int:
    """Run until Ctrl-C. Returns 0 then, 1 if Redis cannot run, 2 for bad settings."""
    faulthandler.register(signal.SIGUSR1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise_stop)
    try:
        place = place_from(os.environ)
        make_keys(Path(os.environ.get("SESSIOND_KEYS_FILE") or place.state / "keys"), place.state / "keys.d")
        make_secret(place.state / "webhook-secret")
    except (SettingsError, OSError) as error:
        print(f"up: {error}", file=sys.stderr)
        return 2
    redis = None if os.environ.get("REDIS_URL") else EmbeddedRedis(place.state / "redis", bound=True)
    return _run(place, redis)


def _raise_stop(number: int, _: FrameType | None) -> None:
    raise _Stop(number)


def _run(place: Place, redis: EmbeddedRedis | None) -> int:
    layers: list[list[Child]] = []
    try:
        if redis is not None:
            redis.start()
            place.env["REDIS_URL"] = redis.url
        layers = _children(place)
        _print_summary(place)
        _begin(place, layers)
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


def _children(place: Place) -> list[list[Child]]:
    """Return the processes in layers, in the order in which they stop: intake, workers, sessiond."""

    def child(name: str, module: str, patience: float, role: str | None = None) -> Child:
        env = dict(place.env)
        key = place.state / "keys.d" / (role or "")
        if role is not None and not env.get("SESSIOND_KEY") and key.exists():
            env["SESSIOND_KEY_FILE"] = str(key)
        return Child(name, module, env, patience)

    handlers = [child(f"handler-{n}", "sessiond_webhook.handler", 8.0, "handler") for n in range(1, place.handlers + 1)]
    workers = [child(f"worker-{n}", "sessiond_worker", 8.0, "worker") for n in range(1, place.workers + 1)]
    # It calls nothing with this key, but it searches what it posts for every secret.
    poster = child("poster", "sessiond_webhook.poster", 8.0, "handler")
    return [
        [child("webhook", "sessiond_webhook", 6.0, "handler")],
        [*handlers, *workers, poster],
        [child("sessiond", "sessiond.main", 20.0)],
    ]


def _begin(place: Place, layers: list[list[Child]]) -> None:
    """Start sessiond first. The others would wait for it, with a warning each."""
    layers[-1][0].start()
    ends = time.monotonic() + READY_SECONDS
    while not _ready(place.url) and time.monotonic() < ends:
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


def _print_summary(place: Place) -> None:
    def say(text: str) -> None:
        print(f"up: {text}", file=sys.stderr)

    say(f"sessiond on {place.url}, keys in {place.state / 'keys.d'}; Ctrl-C stops everything")
    say(f"GitHub deliveries go to {place.webhook_url}/github, secret in {place.env.get('WEBHOOK_SECRET_FILE', '…')}")
    if not any(place.env.get(name) for name in MODEL_KEYS):
        say("no model key: turns will fail; set ANTHROPIC_API_KEY")
    if not any(place.env.get(name) for name in ("GITHUB_TOKEN", "GITHUB_TOKEN_FILE", "GITHUB_APP_ID")):
        say(f"no GitHub token: answers go to {place.env['OUTBOX_DIR']}; set GITHUB_TOKEN to post them")


if __name__ == "__main__":
    sys.exit(main())
