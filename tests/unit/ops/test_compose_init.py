"""The secrets of the containers: created once, separate for each service, and never overwritten."""

import os
from pathlib import Path

from sessiond_ops.compose_init import Owners, make


def test_secrets_are_created_once_and_readable_by_their_owners_only(tmp_path: Path) -> None:
    me = Owners(os.getuid(), os.getuid(), os.getuid())
    assert make(tmp_path, me)
    first = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert not make(tmp_path, me)
    assert first == {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.stat().st_mode & 0o077 == 0 for path in first)
    rules = (tmp_path / "redis/users.acl").read_text()
    for name in ("sessiond", "webhook", "worker"):
        password = (tmp_path / name / "redis-url").read_text().split(":")[2].partition("@")[0]
        assert password not in rules
    # Redis replays the append-only file as this user. Without every right, a restart drops transactions.
    assert "user default off resetpass ~* &* +@all" in rules


def test_only_a_missing_secret_is_created_again(tmp_path: Path) -> None:
    me = Owners(os.getuid(), os.getuid(), os.getuid())
    make(tmp_path, me)
    keys = (tmp_path / "sessiond/keys").read_text()
    secret = (tmp_path / "webhook/webhook-secret").read_text()
    (tmp_path / "webhook/webhook-secret").unlink()
    assert make(tmp_path, me)
    assert (tmp_path / "webhook/webhook-secret").read_text() != secret
    assert (tmp_path / "sessiond/keys").read_text() == keys
