"""The credentials of `make up`: one key per role, and the webhook's secret. Created once, for this user only."""

import hashlib
import secrets
from pathlib import Path

from sessiond_common.private_files import write_durable
from sessiond_common.roles import Role


def make_keys(keys_file: Path, plain: Path) -> None:
    """Write one key per role into files of the directory `plain`, and the SHA-256 of each into `keys_file`.

    Does nothing if `keys_file` exists.
    """
    if keys_file.exists():
        return
    plain.mkdir(parents=True, exist_ok=True, mode=0o700)
    lines = []
    for role in Role:
        key = secrets.token_urlsafe(32)
        write_durable(plain / role, key + "\n")
        lines.append(f"{role} {role} {hashlib.sha256(key.encode()).hexdigest()}\n")
    write_durable(keys_file, "".join(lines))


def make_secret(path: Path) -> None:
    """Write the secret with which GitHub signs its deliveries, unless the file exists."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durable(path, secrets.token_urlsafe(32) + "\n")
