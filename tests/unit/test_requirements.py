"""The lock files fit pyproject.toml and each other, pin every package by hash, and name no registry."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
LOCKS = {path.stem: path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt"))}
LARGEST = "dev"
APART = {"agent", "lock"}
"""The package of the agent's binary, installed without dependencies, and the tool that writes the lock files."""


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", LOCKS[lock], re.MULTILINE))


def required(extra: str) -> list[Requirement]:
    """Return the requirements of an extra in pyproject.toml, including those of the extras that it names."""
    found = []
    for text in (*PROJECT["project"]["dependencies"], *EXTRAS.get(extra, ())):
        one = Requirement(text)
        found += [r for inner in one.extras for r in required(inner)] if one.name == "sessiond" else [one]
    return found


def test_there_is_one_lock_file_for_each_extra() -> None:
    assert set(LOCKS) == {"base", "build", "dev", "lock", *EXTRAS}


@pytest.mark.parametrize("lock", ["base", *EXTRAS])
def test_a_lock_file_has_what_its_extra_requires(lock: str) -> None:
    locked = pins(lock)
    for one in required(lock):
        name = canonicalize_name(one.name)
        assert name in locked and locked[name] in one.specifier, f"{one}: run `make lock`"


@pytest.mark.parametrize("lock", ["build", "dev"])
def test_the_build_backend_is_locked(lock: str) -> None:
    for text in PROJECT["build-system"]["requires"]:
        one = Requirement(text)
        assert pins(lock)[one.name] in one.specifier


@pytest.mark.parametrize("lock", sorted(set(LOCKS) - {LARGEST} - APART))
def test_every_lock_file_has_the_versions_of_the_largest(lock: str) -> None:
    assert pins(lock) and pins(lock).items() <= pins(LARGEST).items()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_by_hash(lock: str) -> None:
    blocks = [block for block in re.split(r"\n(?=\S)", LOCKS[lock]) if block]
    assert blocks and all(re.match(r"[a-z0-9.-]+==\S+ .*\\\n +--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    assert "://" not in LOCKS[lock]
