"""The keys file: its lines, its errors, and the owner of a key."""

import hashlib
from pathlib import Path

import pytest

from sessiond.http import keys
from sessiond.lock.rules import Kind
from sessiond_common.roles import Role

A, B = (hashlib.sha256(key).hexdigest() for key in (b"key-a", b"key-b"))


def test_a_key_has_a_name_a_role_and_patterns() -> None:
    known = keys.parse(f"# people\n\nann admin {A.upper()}  # all sessions\nbot handler {B} Octo/* acme/one\n")
    assert known.find("key-a") == keys.Caller("ann", Role.ADMIN, ("*",))
    bot = known.find("key-b")
    assert bot == keys.Caller("bot", Role.HANDLER, ("octo/*", "acme/one"))
    assert [bot.may_see(name) for name in ("octo/hello", "acme/one", "acme/two")] == [True, True, False]
    assert known.find("key-c") is None


@pytest.mark.parametrize(
    ("role", "kinds"),
    [
        (Role.HANDLER, {Kind.HANDLER}), (Role.WORKER, {Kind.WORKER}), (Role.ADMIN, {Kind.HANDLER, Kind.WORKER}),
        (Role.VIEWER, set()),
    ],
)  # fmt: skip
def test_the_role_decides_which_tickets_a_key_may_take(role: Role, kinds: set[Kind]) -> None:
    assert {kind for kind in Kind if keys.Caller("name", role).may_take(kind)} == kinds


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("ann admin", "line 2: expected: name role sha256-of-key"),
        (f"ann boss {A}", "line 2: unknown role 'boss'; use one of handler, worker, admin, viewer"),
        ("ann admin abc", "line 2: the third word must be the SHA-256 of the key"),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path: Path, line: str, error: str) -> None:
    (tmp_path / "keys").write_text(f"# people\n{line}\n")
    with pytest.raises(keys.KeysError) as found:
        keys.read(tmp_path / "keys")
    assert str(found.value).startswith(f"{tmp_path / 'keys'}: {error}")


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(keys.KeysError, match=str(tmp_path)):
        keys.read(tmp_path / "keys")
