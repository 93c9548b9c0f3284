"""Redis answers reads and refuses writes (memory or disk full, replicas gone). That counts as an outage."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis as redis_library

from sessiond.client import Unavailable
from sessiond.verify import verify
from support.servers import Redis, Sessiond, alive, eventually, scripted_env

SESSION = "octo/hello"
Start = Callable[..., Sessiond]
REFUSALS = {"memory": ("maxmemory", "1", "0"), "replicas": ("min-replicas-to-write", "3", "0")}


@contextmanager
def refusing(redis: Redis, how: str = "memory") -> Iterator[None]:
    name, on, off = REFUSALS[how]
    with redis_library.Redis.from_url(redis.url) as connection:
        connection.config_set(name, on)
        yield
        connection.config_set(name, off)


@pytest.mark.parametrize("how", REFUSALS)
def test_refused_writes_are_one_outage_and_the_open_turn_continues(
    sessiond: Start, redis_server: Redis, how: str
) -> None:
    service = sessiond(scripted_env())
    client, got, told = service.client(), list[str](), list[Any]()

    def wait() -> None:
        with service.client().lease(SESSION, key="b") as lease:
            got.append(lease.turn("#say b").result().text)

    with client.lease(SESSION, key="holder") as lease:
        turn = lease.turn("#tokens 300\n#pace 10ms\n#say through")
        reader = threading.Thread(target=lambda: told.append(turn.result()))
        reader.start()
        eventually(lambda: client.turn(SESSION, turn.id)["state"] == "started")
        waiter = threading.Thread(target=wait)
        waiter.start()
        eventually(lambda: any(t["present"] for t in client.view(SESSION)["queue"]))
        before = client.view(SESSION)
        with refusing(redis_server, how):
            with pytest.raises(Unavailable):
                client.take(SESSION, key="c")
            # Long enough for many attempts, and for the end of the turn.
            time.sleep(5)
        reader.join(60)
    waiter.join(60)
    assert [(r.outcome, r.text) for r in told] == [("completed", "through")] and got == ["b"]
    after = client.view(SESSION)
    assert (after["epoch"], service.log_bytes().count(b"Redis is away")) == (before["epoch"], 1)
    assert verify(client.ledger(SESSION)).violations == []


def test_an_owner_that_cannot_renew_its_record_ends_its_agent(sessiond: Start, redis_server: Redis) -> None:
    """No caller sends anything meanwhile, and the agent writes nothing."""
    service = sessiond(scripted_env(owner_doubt=1.5, owner_renew=0.5))
    client = service.client()
    with client.lease(SESSION, key="holder") as lease:
        turn = lease.turn("#at text silent\n#say never")
        eventually(lambda: client.turn(SESSION, turn.id)["state"] == "started")
        pid = client.view(SESSION)["agent"]["pid"]
        service.remember()
        (agent,) = [p for p in service.left() if p.pid == pid]
        with refusing(redis_server):
            # The holder's next renewal would also detect it, but comes only after 10 s.
            eventually(lambda: not alive(agent), 8, "the agent is ended")
        assert turn.result().outcome == "lost"
