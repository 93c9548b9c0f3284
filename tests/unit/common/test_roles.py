"""Roles: the created keys and the checked keys use the same names."""

from pathlib import Path

from sessiond.http import keys
from sessiond_common.roles import Role
from sessiond_ops.compose_init import Owners, make
from sessiond_ops.credentials import make_keys


def test_the_role_names_are_those_of_keys_files() -> None:
    assert [str(role) for role in Role] == ["handler", "worker", "admin", "viewer"]


def test_credentials_creates_one_key_for_each_role_and_sessiond_accepts_it(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", tmp_path / "plain")
    known = keys.read(tmp_path / "keys")
    for role in Role:
        caller = known.find((tmp_path / "plain" / role).read_text().strip())
        assert caller is not None and (caller.name, caller.role) == (role.value, role)
    assert len((tmp_path / "keys").read_text().splitlines()) == len(Role)


def test_compose_creates_one_key_for_each_role_and_sessiond_accepts_it(tmp_path: Path) -> None:
    me = tmp_path.stat().st_uid
    make(tmp_path, Owners(me, me, me))
    known = keys.read(tmp_path / "sessiond/keys")
    places = {
        Role.HANDLER: "webhook/key", Role.WORKER: "worker/key",
        Role.ADMIN: "people/keys.d/admin", Role.VIEWER: "people/keys.d/viewer",
    }  # fmt: skip
    assert places.keys() == set(Role)
    for role, place in places.items():
        caller = known.find((tmp_path / place).read_text().strip())
        assert caller is not None and (caller.name, caller.role) == (role.value, role)
