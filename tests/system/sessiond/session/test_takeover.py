"""Crashes while an epoch begins, and a Redis older than the epoch. The owner of the session stays its owner."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_library

from sessiond.client import LeaseLost
from sessiond.session.fault_points import STEP_POINTS
from support.servers import Redis, Sessiond, eventually, scripted_env
from support.session.crash_scenes import Scene
from support.size import FULL

SESSION = "octo/hello"
Start = Callable[..., Sessiond]


class PausableSessiond:
    """A sessiond whose loop can be held at a point of a step."""

    def __init__(self, start: Start, place: Path, **times: float) -> None:
        self.hooks = place / "hooks"
        (self.hooks / SESSION).mkdir(parents=True)
        self.service = start({**scripted_env(**times), "SESSIOND_HOOKS_DIR": str(self.hooks)})
        self.scene = Scene(self.service, SESSION)

    def hold(self, point: str) -> None:
        (self.hooks / SESSION / f"{point}.hold").touch()

    def wait_until_reached(self, point: str) -> None:
        eventually((self.hooks / SESSION / f"{point}.reached").exists, 20, point)

    def release(self) -> None:
        for file in (self.hooks / SESSION).iterdir():
            file.unlink()

    def end(self) -> None:
        eventually(self.service.ready, 30)
        self.scene.drain()
        self.scene.check()
        assert self.scene.wrong == []


@pytest.mark.parametrize("point", STEP_POINTS if FULL else STEP_POINTS[:1])
@pytest.mark.parametrize("victim", ["sessiond", "redis"])
def test_a_crash_during_a_takeover_loses_no_place(
    sessiond: Start, redis_server: Redis, tmp_path: Path, point: str, victim: str
) -> None:
    pausable = PausableSessiond(sessiond, tmp_path)
    pausable.scene.lease("a")
    pausable.scene.take("b")
    pausable.service.kill9()
    pausable.hold(f"{point}.epoch")
    pausable.service.start(wait=False)
    pausable.wait_until_reached(f"{point}.epoch")
    if victim == "sessiond":
        pausable.service.kill9()
        pausable.release()
        pausable.service.start()
    else:
        redis_server.kill9()
        pausable.release()
        redis_server.start()
    assert pausable.scene.retry(pausable.scene.lost, "a") == ""
    pausable.end()


def test_the_owner_writes_its_state_back_to_a_redis_older_than_the_epoch(
    sessiond: Start, redis_server: Redis, tmp_path: Path
) -> None:
    service = sessiond(scripted_env(owner_renew=0.3))
    new, old = Scene(service, "octo/new"), Scene(service, SESSION)
    old.take("a")
    redis_server.copy(tmp_path / "older")
    service.kill9()
    service.start()
    epoch = old.view()["epoch"]
    old.lease("a")
    assert old.turn("a", "once", "key").completed
    new.lease("b")  # which the copy does not have
    redis_server.kill9()
    redis_server.restore_data(tmp_path / "older")
    redis_server.start()
    for scene, name in ((old, "a"), (new, "b")):
        scene.wait_until(lambda scene=scene: scene.count_events("restored"))
        assert scene.lost(name) == ""
    assert old.view()["epoch"] == epoch, "no other instance may have been the owner"
    assert old.retry(old.turn, "a", "once", "key").completed
    assert old.sent("once") == 1
    service.kill9()
    service.start()
    assert {one["session"] for one in service.client().sessions()} == {SESSION, "octo/new"}
    for scene, name in ((old, "a"), (new, "b")):
        assert scene.lost(name) == ""
        scene.drain()
        scene.check()
        assert scene.wrong == []


def test_a_read_detects_that_redis_lost_writes(sessiond: Start, redis_server: Redis, tmp_path: Path) -> None:
    """Without a step or a renewal, a read detects that Redis is older."""
    service = sessiond(scripted_env(owner_renew=60, owner_ttl=90))
    scene = Scene(service, SESSION)
    scene.lease("a")
    redis_server.copy(tmp_path / "older")
    assert scene.turn("a", "once", "key").completed
    scene.release("a")
    redis_server.kill9()
    redis_server.restore_data(tmp_path / "older")
    redis_server.start()
    assert scene.retry(scene.client.turn_by_key, SESSION, "key")["outcome"] == "completed"
    scene.retry(scene.release, "a")
    assert scene.ended("a") == "released"
    assert scene.count_events("restored") == 1


def test_a_deadline_that_expires_as_redis_goes_away_starts_again(
    sessiond: Start, redis_server: Redis, tmp_path: Path
) -> None:
    pausable = PausableSessiond(sessiond, tmp_path, lease_ttl=3)
    pausable.scene.lease("a")
    pausable.hold("decided.ended")
    pausable.wait_until_reached("decided.ended")
    redis_server.kill9()
    pausable.release()
    redis_server.start()
    assert pausable.scene.retry(pausable.scene.lost, "a") == ""
    with pytest.raises(LeaseLost, match="expired"):
        eventually(lambda: pausable.scene.count_events("ended"), 20) and pausable.scene.renew("a")


def test_max_hold_starts_again_once_and_then_continues_over_every_restart(sessiond: Start, redis_server: Redis) -> None:
    service = sessiond(scripted_env(max_hold=60))
    scene = Scene(service, SESSION)
    scene.lease("a")

    def left() -> float:
        """Return the stored seconds of `max_hold` that the next owner would grant. Only renewals happen meanwhile."""
        scene.renew("a")
        with redis_library.Redis.from_url(redis_server.url) as redis:
            return float(json.loads(redis.get(f"sessiond:{{{SESSION}}}:lease"))["hold_left"])  # type: ignore[arg-type]

    found = [60.0]
    for _ in range(3):
        service.kill9()
        service.start()
        eventually(lambda: left() < found[-1], 20)
        found.append(left())
    assert found == sorted(found, reverse=True)


def test_a_lease_can_be_renewed_while_other_sessions_are_still_taken_over(sessiond: Start, tmp_path: Path) -> None:
    """The lease's time starts with its own epoch, even if many epochs follow."""
    pausable = PausableSessiond(sessiond, tmp_path)
    pausable.scene.lease("a")
    last = Scene(pausable.service, "octo/last")
    last.take("b")
    pausable.service.kill9()
    point = pausable.hooks / "octo/last" / "decided.epoch"
    point.parent.mkdir()
    point.with_name("decided.epoch.hold").touch()
    pausable.service.start(wait=False)
    eventually(point.with_name("decided.epoch.reached").exists, 20)
    assert pausable.scene.lost("a") == ""
    assert not pausable.service.ready()
    point.with_name("decided.epoch.hold").unlink()
    pausable.end()


def test_a_session_that_cannot_be_read_does_not_block_other_takeovers(sessiond: Start, redis_server: Redis) -> None:
    service = sessiond(scripted_env())
    for name in ("octo/a", "octo/b"):
        service.client().take(name, key="k")
    service.kill9()
    with redis_library.Redis.from_url(redis_server.url) as redis:
        redis.set("sessiond:{octo/a}:meta", "no hash")
    service.start()
    assert {one["session"] for one in service.client().sessions()} == {"octo/b"}
