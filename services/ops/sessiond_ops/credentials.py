"""What the first `make up` makes and later ones find: a key a role, and the webhook's secret, for this user alone."""

import hashlib
import secrets
from pathlib import Path

from sessiond_common.private_files import write_durable

ROLES = ("handler", "worker", "admin", "viewer")


def make_keys(keys_file: Path, plain: Path) -> None:
    """One key a role in files of `plain`, and the keys file with their SHA-256. What is there stays."""
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
    """The secret with which GitHub signs its deliveries. What is there stays."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durable(path, secrets.token_urlsafe(32) + "\n")
