"""`make up`: an embedded Redis and sessiond on this machine, in the foreground, ended in order.

The children lead sessions of their own, so that a terminal's Ctrl-C reaches only this process, which
ends sessiond (and with it the agents) before Redis.
"""

import faulthandler
import hashlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sessiond.embedded import EmbeddedError, EmbeddedRedis, die_with_parent
from sessiond.keys import Role
from sessiond.settings import Settings, SettingsError, from_env

STOP_SECONDS: Final = 20.0
MODEL_KEYS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")


class _Stop(Exception):
    """SIGINT or SIGTERM."""


def main() -> int:
    """0 after Ctrl-C, 1 when a child ended by itself, 2 for bad settings."""
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, _raise)
    signal.signal(signal.SIGTERM, _raise)
    try:
        settings = from_env()
        make_keys(settings)
    except (SettingsError, OSError) as error:
        print(f"up: {error}", file=sys.stderr)
        return 2
    redis = None if os.environ.get("REDIS_URL") else EmbeddedRedis(settings.state_dir / "redis", bound=True)
    try:
        return _run(settings, redis)
    except EmbeddedError as error:
        print(f"up: {error}", file=sys.stderr)
        return 1
    except _Stop:
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if redis is not None:
            redis.stop()
        print("up: stopped", file=sys.stderr)


def _raise(number: int, _: object) -> None:
    raise _Stop(number)


def _run(settings: Settings, redis: EmbeddedRedis | None) -> int:
    env = dict(os.environ)
    if redis is not None:
        redis.start()
        env["REDIS_URL"] = redis.url
    _greet(settings, env)
    child = subprocess.Popen(
        [sys.executable, "-m", "sessiond.main"], env=env, stdin=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=die_with_parent,
    )  # fmt: skip
    try:
        while child.poll() is None and not (redis is not None and redis.ended()):
            time.sleep(0.2)
    finally:
        ended = child.poll()
        _stop(child)
    print(f"up: {'sessiond' if ended is not None else 'Redis'} ended by itself", file=sys.stderr)
    return 2 if ended == 2 else 1


def _stop(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _greet(settings: Settings, env: Mapping[str, str]) -> None:
    print(f"up: sessiond on {settings.url}, keys in {settings.state_dir / 'keys.d'}, Ctrl-C ends it", file=sys.stderr)
    if not any(env.get(name) for name in MODEL_KEYS):
        print("up: no model key (ANTHROPIC_API_KEY): turns will end with that reason", file=sys.stderr)


def make_keys(settings: Settings) -> None:
    """On the first run: one key a role, readable for this user, and the keys file with their SHA-256."""
    if settings.keys_file.exists():
        return
    plain = settings.state_dir / "keys.d"
    plain.mkdir(parents=True, exist_ok=True, mode=0o700)
    lines = []
    for role in Role:
        key = secrets.token_urlsafe(32)
        _private(plain / role.value, key + "\n")
        lines.append(f"{role.value} {role.value} {hashlib.sha256(key.encode()).hexdigest()}\n")
    _private(settings.keys_file, "".join(lines))


def _private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
