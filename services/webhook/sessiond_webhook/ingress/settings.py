"""Settings of the ingress. docs: the table in docs/webhook.md."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from sessiond_common.env import Env, SettingsError
from sessiond_webhook.deliveries import authorization
from sessiond_webhook.deliveries.authorization import DEFAULT_ASSOCIATIONS, People
from sessiond_webhook.deliveries.intents import Rules
from sessiond_webhook.deliveries.mentions import Kind, Trigger

DEFAULT_SESSIOND: Final = "http://127.0.0.1:8420"
BOT_LOGIN: Final = "sessiond[bot]"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """How the ingress runs. Durations in seconds, sizes in bytes."""

    secrets: tuple[str, ...] = field(repr=False)
    """One or two: each signs what is accepted."""
    rules: Rules
    redis_url: str
    sessiond_url: str
    sessiond_key: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 8421
    processes: int = 1
    arrival_seconds: float = 10.0
    """For a request's headers, and again for its body."""
    bytes_in_flight: int = 256 * 2**20
    """Of bodies, in each process."""
    ticket_seconds: float = 1.0
    sweep_seconds: float = 30.0
    runs_per_session: int = 2
    """As the handlers have it: the sweep wakes no more."""
    log_format: str = "console"


def from_env(environ: Mapping[str, str] = os.environ) -> IngressSettings:
    """The settings that the environment asks for. Raises SettingsError."""
    env = Env(environ)
    secrets = tuple(filter(None, (env.secret("WEBHOOK_SECRET"), env.secret("WEBHOOK_SECRET_PREVIOUS"))))
    if not secrets:
        raise SettingsError("WEBHOOK_SECRET: must be set (or WEBHOOK_SECRET_FILE): unsigned deliveries are not taken")
    return IngressSettings(
        secrets=secrets,
        rules=_rules(env),
        redis_url=env.redis_url(),
        sessiond_url=env.url("SESSIOND_URL", DEFAULT_SESSIOND),
        sessiond_key=env.secret("SESSIOND_KEY"),
        host=env.text("WEBHOOK_HOST", "127.0.0.1"),
        port=env.port("WEBHOOK_PORT", 8421),
        processes=env.count("WEBHOOK_PROCESSES", 1),
        arrival_seconds=env.seconds("WEBHOOK_ARRIVAL_SECONDS", 10.0),
        bytes_in_flight=env.count("WEBHOOK_BYTES_IN_FLIGHT", 256 * 2**20),
        ticket_seconds=env.seconds("WEBHOOK_TICKET_SECONDS", 1.0),
        sweep_seconds=env.seconds("SWEEP_SECONDS", 30.0),
        runs_per_session=env.count("RUNS_PER_SESSION", 2),
        log_format=env.one_of("WEBHOOK_LOG_FORMAT", ("console", "json"), "console"),
    )


def _rules(env: Env) -> Rules:
    login = env.text("BOT_LOGIN", BOT_LOGIN)
    kind = Kind(env.one_of("TRIGGER", tuple(one.value for one in Kind), Kind.MENTION.value))
    associations = _each(env, "ALLOWED_ASSOCIATIONS", authorization.association)
    return Rules(
        trigger=Trigger(kind, login, env.text("TRIGGER_LABEL", "sessiond")),
        people=People(
            authorization.own_account(login, env.read("BOT_ID", _account, 0)),
            frozenset(associations) or DEFAULT_ASSOCIATIONS,
            _each(env, "ALLOWED_USERS", authorization.listed),
        ),
        task_label=env.text("TASK_LABEL", "sessiond-task"),
    )


def _each(env: Env, name: str, parse: Callable[[str], _T]) -> tuple[_T, ...]:
    """Each of the words, parsed. Raises SettingsError."""
    try:
        return tuple(parse(word) for word in env.words(name))
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from error


def _account(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**63:
        raise ValueError("must be an account's number")
    return int(text)
