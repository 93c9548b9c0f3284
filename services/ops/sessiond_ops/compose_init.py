"""`python -m sessiond_ops.compose_init DIRECTORY`: create the secrets of the containers of docker-compose.yml, once.

    DIRECTORY/redis/users.acl                                    sessiond/{keys,redis-url}
    DIRECTORY/webhook/{webhook-secret,key,redis-url}             worker/{key,redis-url}
    DIRECTORY/people/{keys.d/{admin,viewer},redis-url}           for `sessionctl` and the board

Each directory is a volume of its own, so that a service sees only its own secrets. Existing files are kept. A missing
file is created again, together with the files that must match it.
"""

import hashlib
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sessiond_common.env import Env, load
from sessiond_common.private_files import write_durable
from sessiond_common.roles import Role
from sessiond_ops.credentials import make_secret

USERS: Final = ("sessiond", "webhook", "worker")
_RQ: Final = "&rq:* +@all -@dangerous -@admin +info +client|list"
GRANTS: Final[Mapping[str, str]] = {
    "sessiond": "~sessiond:* +@read +@write +@connection +@transaction +@scripting +time "
    "-@dangerous -@admin -keys -scan",
    "webhook": f"~webhook:* ~rq:* ~worker:* {_RQ}",
    "worker": f"~worker:* ~rq:* {_RQ}",
}
"""What each service may do in Redis (ACL rules). rq calls INFO and CLIENT LIST when a worker process starts."""


@dataclass(frozen=True, slots=True)
class Owners:
    """The user ids of the accounts that read the secrets."""

    redis: int = 999
    webhook: int = 10001
    worker: int = 10002


def make(root: Path, owners: Owners, redis_host: str = "redis") -> bool:
    """Create the missing files below `root`. Returns whether any was missing."""
    made = False
    if not all((root / name).exists() for name in ("redis/users.acl", *(f"{user}/redis-url" for user in USERS))):
        _redis(root, redis_host)
        made = True
    if not all(
        (root / name).exists() for name in ("sessiond/keys", "webhook/key", "worker/key", "people/keys.d/admin")
    ):
        _keys(root)
        made = True
    if not (root / "webhook/webhook-secret").exists():
        make_secret(root / "webhook/webhook-secret")
        made = True
    for name, owner in (("redis", owners.redis), ("webhook", owners.webhook), ("worker", owners.worker)):
        for path in (*(root / name).iterdir(), root / name):
            _chown(path, owner)
    return made


def _redis(root: Path, host: str) -> None:
    # `default` is off, so that nobody can log in as it. It has every right, because Redis replays its append-only file
    # as this user and drops each transaction that the user may not run.
    lines = ["user default off resetpass ~* &* +@all", "user health on nopass resetkeys resetchannels -@all +ping"]
    for user in USERS:
        password = secrets.token_urlsafe(32)
        _write(root / user / "redis-url", f"redis://{user}:{password}@{host}:6379/0\n")
        if user == "worker":  # `sessionctl task` uses the same keys
            _write(root / "people" / "redis-url", f"redis://{user}:{password}@{host}:6379/0\n")
        hashed = hashlib.sha256(password.encode()).hexdigest()
        lines.append(f"user {user} on #{hashed} resetkeys resetchannels -@all {GRANTS[user]}")
    _write(root / "redis/users.acl", "".join(f"{line}\n" for line in lines))


def _keys(root: Path) -> None:
    keys = {role: secrets.token_urlsafe(32) for role in Role}
    for role, name in ((Role.HANDLER, "webhook/key"), (Role.WORKER, "worker/key"),
                       (Role.VIEWER, "people/keys.d/viewer"), (Role.ADMIN, "people/keys.d/admin")):  # fmt: skip
        _write(root / name, keys[role] + "\n")
    hashed = {role: hashlib.sha256(key.encode()).hexdigest() for role, key in keys.items()}
    _write(root / "sessiond/keys", "".join(f"{role} {role} {text}\n" for role, text in hashed.items()))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durable(path, text)


def _chown(path: Path, owner: int) -> None:
    if path.stat().st_uid != owner:
        os.chown(path, owner, owner)


def print_summary(root: Path, url: str) -> None:
    """Print the settings of the GitHub webhook, and where the keys are."""
    secret = (root / "webhook/webhook-secret").read_text().strip()
    print(
        f"""
GitHub, in the repository's Settings > Webhooks > Add webhook:
  Payload URL   {url}/github   (as GitHub reaches it; for a machine behind NAT see docs/connect-github.md)
  Content type  application/json
  Secret        {secret}
  Events        Issue comments, Issues, Pull requests, Pull request reviews, Pull request review comments

To use sessionctl, and to print the key for the board:
  docker compose run --rm sessionctl status
  docker compose run --rm --entrypoint cat sessionctl /keys/people/keys.d/viewer
The secrets stay in the volumes keys-*. `docker compose run --rm init` prints this again.
""",
        flush=True,
    )


def main() -> int:
    """Return 0, or 2 if the directory cannot be written."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "/keys")
    try:
        made = make(root, Owners())
    except OSError as error:
        print(f"init: {error}", file=sys.stderr)
        return 2
    print("init: made keys, the webhook's secret and the Redis users" if made else "init: all secrets exist already")
    print_summary(root, load(public_url, os.environ))
    return 0


def public_url(env: Env) -> str:
    """Read the URL that GitHub calls."""
    return env.read("PUBLIC_URL", str, "http://127.0.0.1:8080", "URL that GitHub calls, for the text that init prints")


if __name__ == "__main__":
    sys.exit(main())
