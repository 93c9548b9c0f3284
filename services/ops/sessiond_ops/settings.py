"""`python -m sessiond_ops.settings`: prints every setting of every program as Markdown tables.

The tables come from the code that reads the variables. They show the name, the default and the meaning.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Final

import sessiond.settings
import sessiond_webhook.cli
import sessiond_webhook.handler.settings
import sessiond_webhook.ingress.settings
import sessiond_webhook.poster.settings
import sessiond_worker.settings
from sessiond_common.env import Env, Setting, list_settings
from sessiond_ops import compose_init, up


def _sessionctl(env: Env) -> None:
    env.state_dir()
    env.url("SESSIOND_URL", "http://127.0.0.1:8420", "URL of sessiond")
    env.text("SESSIOND_KEY", "", "key; by default that of keys.d/admin in the state directory")
    sessiond_webhook.cli.webhook_url(env)
    sessiond_webhook.cli.webhook_secret(env)
    env.redis_url()


def _tests(env: Env) -> None:
    env.optional_path("HOOKS_DIR", "for tests: directory of fault points in webhook, handler and poster")


PROGRAMS: Final[dict[str, Callable[[Env], object]]] = {
    "sessiond": sessiond.settings.read,
    "webhook": sessiond_webhook.ingress.settings.read,
    "handler": sessiond_webhook.handler.settings.read,
    "poster": sessiond_webhook.poster.settings.read,
    "worker": sessiond_worker.settings.read,
    "make up": up.read,
    "sessionctl": _sessionctl,
    "compose's init": compose_init.public_url,
    "tests": _tests,
}


def programs() -> dict[str, tuple[Setting, ...]]:
    """Return the settings by program."""
    return {program: list_settings(read) for program, read in PROGRAMS.items()}


def table(settings: Iterable[Setting]) -> str:
    """Return a Markdown table."""
    rows = (f"| `{one.name}` | {f'`{one.default}`' if one.default else ''} | {one.what} |" for one in settings)
    return "\n".join(("| Variable | Default | Meaning |", "| --- | --- | --- |", *rows))


def main() -> int:
    """Print one section for each program."""
    print("\n\n".join(f"## {program}\n\n{table(settings)}" for program, settings in programs().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
