"""Settings of the ingress, from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sessiond_common.env import Env, load, whole
from sessiond_webhook.deliveries import authorization
from sessiond_webhook.deliveries.authorization import ASSOCIATIONS, DEFAULT_ASSOCIATIONS, People
from sessiond_webhook.deliveries.intents import Rules
from sessiond_webhook.deliveries.mentions import Kind, Trigger
from sessiond_webhook.demands.comment import Person

DEFAULT_SESSIOND: Final = "http://127.0.0.1:8420"
BOT_LOGIN: Final = "sessiond[bot]"


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """How the ingress runs. Durations are in seconds, sizes in bytes."""

    secrets: tuple[str, ...] = field(repr=False)
    """One or two. A delivery is accepted if one of them signed it."""
    rules: Rules
    redis_url: str
    sessiond_url: str
    sessiond_key: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 8421
    processes: int = 1
    arrival_seconds: float = 10.0
    """Time limit of a request's headers, and again of its body."""
    bytes_in_flight: int = 256 * 2**20
    """Limit of bodies in memory, of each process."""
    ticket_seconds: float = 1.0
    sweep_seconds: float = 30.0
    runs_per_session: int = 2
    """The handlers' value. A sweep wakes no more runs than this."""
    log_format: str = "console"


def from_env(environ: Mapping[str, str] = os.environ) -> IngressSettings:
    """Return the settings of this environment. Raises SettingsError."""
    return load(read, environ)


def read(env: Env) -> IngressSettings:
    """Read all variables of the ingress."""
    current = env.secret("WEBHOOK_SECRET", "secret that signs deliveries; required")
    previous = env.secret("WEBHOOK_SECRET_PREVIOUS", "older secret, valid too while the secret changes")
    if not current and not previous:
        env.refuse(("WEBHOOK_SECRET",), "must be set (or WEBHOOK_SECRET_FILE): unsigned deliveries are not accepted")
    return IngressSettings(
        secrets=tuple(secret for secret in (current, previous) if secret),
        rules=_rules(env),
        redis_url=env.redis_url(),
        sessiond_url=env.url("SESSIOND_URL", DEFAULT_SESSIOND, "URL of sessiond"),
        sessiond_key=env.secret("SESSIOND_KEY", "key with the role handler"),
        host=env.text("WEBHOOK_HOST", "127.0.0.1", "address on which the webhook listens"),
        port=env.port("WEBHOOK_PORT", 8421, "port on which the webhook listens"),
        processes=env.count("WEBHOOK_PROCESSES", 1, "processes of this replica"),
        arrival_seconds=env.seconds(
            "WEBHOOK_ARRIVAL_SECONDS", 10.0, "time limit of a request's headers, and again of its body"
        ),
        bytes_in_flight=env.count(
            "WEBHOOK_BYTES_IN_FLIGHT", 256 * 2**20, "limit of bodies in memory, in bytes, of each process"
        ),
        ticket_seconds=env.seconds("WEBHOOK_TICKET_SECONDS", 1.0, "time limit of the call to sessiond at arrival"),
        sweep_seconds=env.seconds("SWEEP_SECONDS", 30.0, "time between two sweeps, over all replicas"),
        runs_per_session=env.count("RUNS_PER_SESSION", 2, "runs of one session at a time; must be the handler's value"),
        log_format=env.log_format("WEBHOOK_LOG_FORMAT"),
    )


def _rules(env: Env) -> Rules:
    login = env.text("BOT_LOGIN", BOT_LOGIN, "login of our account, as GitHub spells it")
    kinds = tuple(kind.value for kind in Kind)
    kind = env.one_of("TRIGGER", kinds, Kind.MENTION.value, f"what makes a comment a demand: {', '.join(kinds)}")
    label = env.text("TRIGGER_LABEL", "sessiond", "label for TRIGGER=label")
    account = env.read("BOT_ID", _account, 0, "number of our account (GET /users/LOGIN)")
    associations = env.words(
        "ALLOWED_ASSOCIATIONS", _association, tuple(DEFAULT_ASSOCIATIONS), "values of author_association that may ask"
    )
    users = env.words("ALLOWED_USERS", _user, (), "accounts that may ask: id of a user, or id:Type")
    return Rules(
        trigger=Trigger(Kind(kind), login, label),
        people=People(
            authorization.bot_account(login, account), frozenset(associations) or DEFAULT_ASSOCIATIONS, users
        ),
        task_label=env.text("TASK_LABEL", "sessiond-task", "label that makes an issue a task"),
    )


def _association(word: str) -> str:
    try:
        return authorization.association(word)
    except ValueError as error:
        raise ValueError(f"is not one of {', '.join(sorted(ASSOCIATIONS))}") from error


def _user(word: str) -> Person:
    try:
        return authorization.account_of(word)
    except ValueError as error:
        raise ValueError("is not the number of an account, or number:Type") from error


def _account(text: str) -> int:
    reason = "must be the number of an account"
    if not text.isascii() or not text.isdigit():
        raise ValueError(reason)
    return whole(text, 2**63 - 1, reason)
