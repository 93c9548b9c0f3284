"""An agent that runs as another user. Most tests need root."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gevent
import pytest

from sessiond.agent.process.agent_process import AgentProcess
from sessiond.agent.process.guard_registry import sweep
from sessiond.agent.process.pipes import SpawnError
from sessiond.agent.process.user import User, acting_as
from sessiond.settings import SettingsError, from_env

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
NOBODY = User(65534, 65534)


def run(script: str, user: User | None) -> tuple[AgentProcess, list[bytes], list[int | None]]:
    lines: list[bytes] = []
    ends: list[int | None] = []
    process = AgentProcess.spawn(
        ["/bin/sh", "-c", script], Path("/"), {"PATH": os.environ["PATH"]}, lines.extend,
        lambda code, _: ends.append(code), user,
    )  # fmt: skip
    return process, lines, ends


def until(check: object, seconds: float = 5.0) -> None:
    ends = time.monotonic() + seconds
    while not check() and time.monotonic() < ends:  # type: ignore[operator]
        gevent.sleep(0.01)


@root_only
def test_the_agent_runs_as_the_user_for_good_and_without_capabilities() -> None:
    _, lines, ends = run("id -u; id -g; id -G; grep CapPrm /proc/self/status; cat /proc/$PPID/environ || true", NOBODY)
    until(lambda: ends)
    assert ends == [0]
    assert lines[:3] == [b"65534"] * 3
    assert lines[3].split()[1].strip(b"0") == b""
    assert len(lines) == 4, "the agent cannot read the guard's environment"


@root_only
def test_the_other_users_tree_ends_when_the_lifeline_closes() -> None:
    process, lines, ends = run("setsid sh -c 'trap : TERM; echo up; while :; do sleep 1; done' & wait", NOBODY)
    until(lambda: lines)
    process.stop()
    until(lambda: ends)
    assert ends and sweep(process.guard, 0.1, NOBODY)


@root_only
def test_a_killed_guard_leaves_no_process_of_the_other_user() -> None:
    process, lines, ends = run("setsid sh -c 'echo $$; while :; do sleep 1; done' & wait", NOBODY)
    until(lambda: lines)
    tool = int(lines[0])
    os.kill(process.guard.pid, 9)
    until(lambda: ends)
    until(lambda: not Path(f"/proc/{tool}").exists(), 2)
    assert ends == [None]
    state = Path(f"/proc/{tool}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


@root_only
def test_acting_as_reads_files_with_the_users_rights() -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "root's"
        file.touch(mode=0o600)
        with acting_as(NOBODY), pytest.raises(PermissionError):
            file.read_text()
        assert os.geteuid() == 0 and file.read_text() == ""


UNPRIVILEGED = ("setpriv", "--bounding-set=-all,+setuid,+setgid,+kill", "--inh-caps=-all", sys.executable, "-c")
"""Root with the capabilities of a container. It may change users, but not enter a closed directory of another user."""
ELSEWHERE = """
import sys
from pathlib import Path
import gevent
from sessiond.agent.process.agent_process import AgentProcess
from sessiond.agent.process.user import User
ends, place = [], Path(sys.argv[1])
def lines(found):
    print(*[line.decode() for line in found], flush=True)
AgentProcess.spawn(["/bin/pwd"], place, {}, lines, lambda code, _: ends.append(code), User(65534, 65534))
with gevent.Timeout(20):
    while not ends:
        gevent.sleep(0.01)
"""


@root_only
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")
def test_the_working_directory_may_be_closed_to_all_other_users() -> None:
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        place = Path(parent) / "closed"
        place.mkdir(mode=0o700)
        os.chown(place, NOBODY.uid, NOBODY.gid)
        found = subprocess.run([*UNPRIVILEGED, ELSEWHERE, str(place)], capture_output=True, text=True, check=False)
    assert (found.stdout.strip(), found.returncode) == (str(place), 0), found.stderr


def test_a_start_without_the_right_to_change_users_reports_it() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may")
    with pytest.raises(SpawnError, match="not permitted"):
        run("true", NOBODY)


@pytest.mark.parametrize("uid, gid", [("0", "5"), ("5", ""), ("5", "0"), ("x", "5"), ("-1", "5"), ("4294967295", "5")])
def test_settings_refuse_an_invalid_agent_user(uid: str, gid: str) -> None:
    with pytest.raises(SettingsError, match="SESSIOND_AGENT_UID"):
        from_env({"SESSIOND_AGENT_UID": uid, "SESSIOND_AGENT_GID": gid})
    assert from_env({}).agent_user is None
    assert from_env({"SESSIOND_AGENT_UID": "5", "SESSIOND_AGENT_GID": "6"}).agent_user == User(5, 6)
