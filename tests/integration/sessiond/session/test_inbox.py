"""The answer to a caller matches what is stored, also after an outage or a takeover."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from sessiond.client import NotOwner, Unavailable
from support.servers import Redis, Sessiond, eventually, scripted_env
from support.session.crash_scenes import Scene

SESSION = "octo/hello"
SHORT = {"owner_ttl": 2.0, "owner_renew": 0.4, "owner_doubt": 1.5}
Start = Callable[..., Sessiond]


def test_a_turn_without_a_key_is_refused_only_if_it_does_not_run(sessiond: Start, redis_server: Redis) -> None:
    """Redis is paused while the turn is accepted, and applies the step when it resumes."""
    service = sessiond(scripted_env())
    scene = Scene(service, SESSION)
    scene.lease("a")
    redis_server.pause()
    turn = scene.start_call(scene.turn, "a", "#say once")
    try:
        eventually(lambda: "Redis is away" in service.log_text(), 20)
    finally:
        redis_server.resume()
    turn.end()
    assert (turn.outcome, scene.retry(scene.sent, "#say once")) == ("completed", 1)


class Takeover:
    """An owner that is held at a point of a step, and another instance that takes the session over."""

    def __init__(self, start: Start, place: Path, point: str) -> None:
        self.point = place / "hooks" / SESSION / point
        self.first = start({**scripted_env(**SHORT), "SESSIOND_HOOKS_DIR": str(place / "hooks")}, name="a")
        self.second = start(scripted_env(**SHORT), name="b")
        self.scene = Scene(self.first, SESSION)
        self.point.parent.mkdir(parents=True)

    def hold(self) -> None:
        self.point.with_name(f"{self.point.name}.hold").touch()

    def wait_until_reached(self) -> None:
        eventually(self.point.with_name(f"{self.point.name}.reached").exists, 20)

    def wait_for_takeover(self) -> None:
        """Pause the first instance until the second one owns the session."""
        self.first.pause()
        eventually(self._taken, 20)

    def _taken(self) -> bool:
        with contextlib.suppress(NotOwner, Unavailable):
            return bool(self.second.client().view(SESSION)["owner"]["url"] == self.second.url)
        return False

    def resume(self) -> None:
        self.point.with_name(f"{self.point.name}.hold").unlink()
        self.first.resume()


def test_a_reader_gets_the_stored_end_of_its_turn(sessiond: Start, tmp_path: Path) -> None:
    takeover = Takeover(sessiond, tmp_path, "committed.turn-closed")
    takeover.scene.lease("a")
    takeover.hold()
    turn = takeover.scene.start_call(takeover.scene.turn, "a", "#say the end", "k")
    takeover.wait_until_reached()
    takeover.wait_for_takeover()
    takeover.resume()
    turn.end()
    stored = takeover.second.client().turn_by_key(SESSION, "k")
    assert (turn.answer.outcome, turn.answer.text) == (stored["outcome"], stored["text"]) == ("completed", "the end")


def test_a_reader_gets_the_end_of_its_turn_from_the_next_owner(sessiond: Start, redis_server: Redis) -> None:
    """Redis is paused as the turn ends, and sessiond is terminated meanwhile."""
    service = sessiond(scripted_env())
    scene = Scene(service, SESSION)
    scene.lease("a")
    turn = scene.start_call(scene.turn, "a", "#at text until=go\n#say the end", "k")
    scene.wait_for_turn()
    redis_server.pause()
    (service.state / "work" / SESSION / "go").touch()
    eventually(lambda: "Redis is away" in service.log_text(), 20)
    ending = threading.Thread(target=service.terminate)
    ending.start()
    ending.join()
    redis_server.resume()
    service.start()
    turn.end()
    stored = scene.retry(scene.client.turn_by_key, SESSION, "k")
    assert (turn.answer.outcome, turn.answer.text) == (stored["outcome"], stored["text"])


def test_only_the_current_owner_answers_for_a_known_key(sessiond: Start, tmp_path: Path) -> None:
    takeover = Takeover(sessiond, tmp_path, "acted.taken")
    takeover.scene.take("k")
    takeover.hold()
    other = takeover.scene.start_call(takeover.scene.take, "z")
    takeover.wait_until_reached()
    known = takeover.scene.start_call(takeover.scene.take, "k")
    takeover.wait_for_takeover()
    takeover.second.client().withdraw(SESSION, takeover.scene.ids["k"])
    takeover.resume()
    known.end()
    other.end()
    assert known.answer != takeover.scene.ids["k"], "the old ticket has ended, so the key must give a new one"
