"""The credentials of `make up`: one key a role and the webhook's secret. Made once, for this user only."""

import hashlib
import secrets
from pathlib import Path

from sessiond_common.private_files import write_durable

ROLES = ("handler", "worker", "admin", "viewer")


def make_keys(keys_file: Path, plain: Path) -> None:
    """Write one key a role into files of the directory `plain`, and their SHA-256 into `keys_file`.

    Does nothing if `keys_file` exists.
    """
    if keys_file.exists():
        return
    plain.mkdir(parents=True, exist_ok=True, mode=0o700)
    lines = []
    for role in ROLES:
        key = secrets.token_urlsafe(32)
        write_durable(plain / role, key + "\n")
        lines.append(f"{role} {role} {hashlib.sha256(key.encode()).hexdigest()}\n")
    write_durable(keys_file, "".join(lines))


def make_secret(path: Path) -> None:
    """Write the secret with which GitHub signs its deliveries, unless the file exists."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durable(path, secrets.token_urlsafe(32) + "\n")
