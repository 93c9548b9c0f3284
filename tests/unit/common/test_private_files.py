"""Private files: written completely or not at all, readable by their owner only, without left-over files."""

import errno
import os
import stat
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
    synced: list[tuple[Path, str | None]] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        fsync(descriptor)
        named = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((named, path.read_text() if path.exists() else None))
        if named != tmp_path:
            assert os.fstat(descriptor).st_size == 4

    monkeypatch.setattr(os, "fsync", seen)
    write_durable(path, "four")
    (draft, before), (directory, after) = synced
    assert draft.parent == tmp_path and before is None
    assert directory == tmp_path and after == "four"


def test_a_durable_file_is_written_where_directories_cannot_be_synchronized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refused(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    write_durable(tmp_path / "secret", "text")
    assert (tmp_path / "secret").read_text() == "text"


def test_a_durable_file_whose_directory_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def broken(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write_durable(tmp_path / "secret", "text")
