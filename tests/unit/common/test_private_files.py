"""Private files: written completely or not at all, readable by their owner only, without left-over files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sessiond_common.private_files import write_durable, write_private

Write = Callable[[Path, str], None]
both = pytest.mark.parametrize("write", [write_private, write_durable])


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@both
def test_a_file_is_readable_by_its_owner_only_and_replaced_atomically(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "secret"
    path.write_text("a longer text that was there before")
    path.chmod(0o644)
    with path.open() as before:
        write(path, "ü\n")
        assert before.read() == "a longer text that was there before", "an open reader keeps the old file"
    assert path.read_text(encoding="utf-8") == "ü\n" and mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@both
def test_a_write_that_fails_changes_nothing(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    write(path, "before")

    def full(self: Path, target: Path) -> Path:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write(path, "after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@both
def test_a_missing_directory_is_not_created(tmp_path: Path, write: Write) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "secret", "text")


def test_a_durable_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", seen)
    write_durable(path, "four")
    assert synced == [(4, False)] and path.read_text() == "four"
