"""Fault points: a process waits there while a test holds the point, and records that it has reached it."""

import os
import threading
from pathlib import Path

import pytest

from sessiond_common.fault_points import append_in, hold, hold_in
from support.servers import eventually


def reached(directory: Path, point: str) -> bool:
    """Whether a thread of this process has reached the point. Its file is empty until the text is written."""
    path = directory / f"{point}.reached"
    return path.exists() and path.read_text() == str(os.getpid())


def test_a_held_point_waits_until_it_is_released(tmp_path: Path) -> None:
    (tmp_path / "octo").mkdir()
    held = tmp_path / "octo/decided.hold"
    held.touch()
    thread = threading.Thread(target=hold_in, args=(tmp_path, "octo/decided"))
    thread.start()
    eventually(lambda: reached(tmp_path, "octo/decided"), 5)
    assert thread.is_alive()
    held.unlink()
    thread.join(5)
    assert not thread.is_alive()


def test_a_point_that_is_not_held_creates_no_file(tmp_path: Path) -> None:
    hold_in(tmp_path, "free")
    hold_in(None, "free")
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here.hold").touch()
    monkeypatch.setenv("HOOKS_DIR", "")
    hold("here")
    assert not reached(tmp_path, "here")
    monkeypatch.setenv("HOOKS_DIR", str(tmp_path))
    thread = threading.Thread(target=hold, args=("here",))
    thread.start()
    eventually(lambda: reached(tmp_path, "here"), 5)
    (tmp_path / "here.hold").unlink()
    thread.join(5)
    assert not thread.is_alive()


def test_lines_are_appended(tmp_path: Path) -> None:
    append_in(tmp_path, "runs", "begin", 1)
    append_in(tmp_path, "runs", "end", 1)
    append_in(None, "runs", "nowhere")
    assert (tmp_path / "runs").read_text() == "begin 1\nend 1\n"
