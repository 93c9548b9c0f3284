"""One instance that acquires one session and runs a real Session. Its Redis fails on command.

It has no agent process. The test sends the agent's events instead.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import gevent
import redis as redis_library

from sessiond.lock.rules import Times
from sessiond.problems import Problem
from sessiond.session.agent.slots import Sleeper, Slots
from sessiond.session.loop import Session
from sessiond.settings import Settings
from sessiond.store.connection import RedisUnavailable
from sessiond.store.ownership import Instance, OtherOwner, OwnershipStore
from sessiond.store.store import CommitResult, Store, StoreStep
from support.servers import Redis
from support.session.in_loop import TEST_HANDLERS, RunInLoop

LONG = Times(**{f.name: 100_000.0 for f in fields(Times)})
"""Times so long that no timer expires by itself."""


class Fault(Enum):
    """What happens to the next committed step."""

    LOST_COMMAND = "the command is lost"
    LOST_ANSWER = "the answer is lost"
    KILLED_BEFORE = "Redis is killed before"
    KILLED_AFTER = "Redis is killed after, the answer is lost"
    DIES = "the owner dies after"
    WRONG_HEAD = "it names a wrong head"


class FaultyStore(Store):
    """The real store. `fault` affects the next step only."""

    def __init__(self, server: Redis, name: str, instance: str) -> None:
        super().__init__(server.url, name, instance)
        self.server = server
        self.fault: Fault | None = None
        self.applied = 0
        """How many steps Redis applied."""
        self.last: StoreStep | None = None
        """The last step that was sent."""

    def commit(self, step: StoreStep) -> CommitResult:
        fault, self.fault = self.fault, None
        match fault:
            case Fault.LOST_COMMAND:
                raise RedisUnavailable("the command is lost")
            case Fault.KILLED_BEFORE:
                self._kill()
            case Fault.WRONG_HEAD if step.grant is None:
                self.fault = fault
            case Fault.WRONG_HEAD:
                step.grant = self.wrong_head(step)
        outcome = self._commit(step)
        if fault is Fault.KILLED_AFTER:
            self._kill()
        if fault in (Fault.LOST_ANSWER, Fault.KILLED_AFTER):
            raise RedisUnavailable("the answer is lost")
        if fault is Fault.DIES:
            raise gevent.GreenletExit
        return outcome

    def _commit(self, step: StoreStep) -> CommitResult:
        outcome = super().commit(step)
        self.applied += outcome is CommitResult.APPLIED
        self.last = replace(step)
        return outcome

    def _kill(self) -> None:
        self.server.kill9()
        self.server.start()

    def wrong_head(self, step: StoreStep) -> tuple[str, frozenset[str]]:
        """Return a grant that Redis must refuse: it skips unnamed tickets, or grants an unknown ticket."""
        assert step.grant is not None
        ticket, skipped = step.grant
        return (ticket, frozenset()) if skipped else ("tk-nowhere", skipped)


class NoSlots(Slots):
    """Slots that start no agent."""

    def take(self, owner: Sleeper) -> bool:
        raise gevent.GreenletExit


class Owner:
    """An instance that owns the session."""

    def __init__(self, server: Redis, name: str, instance: str, place: Path, host: str = "here") -> None:
        self.name = name
        self.settings = Settings(
            redis_url=server.url, state_dir=place, instance=instance, url=f"http://{instance}", host_name=host,
            model="m", times=LONG,
        )  # fmt: skip
        self.owners = OwnershipStore(server.url, Instance(instance, self.settings.url, place, host), 0.0)
        self.store = FaultyStore(server, name, instance)
        self.session: Session
        self._closed = False

    def claim(self) -> int:
        """Acquire and load the session as the registry does. Returns its epoch.

        Raises:
            OtherOwner: Another instance owns the session.
        """
        owned = self.owners.acquire(self.name)
        self.session = Session(self.settings, self.store, owned, NoSlots(1), TEST_HANDLERS)
        self.session.start()
        return owned.epoch

    def claim_from_stalled_owner(self) -> int:
        """Claim the session from an owner that may live, but did not renew for `owner_ttl`."""
        with suppress(OtherOwner):
            self.owners.acquire(self.name)
            raise AssertionError("the first attempt must not depose an owner that may live")
        return self.claim()

    def ask(self, work: Callable[[], Any]) -> Any:
        """Run `work` in the owner loop. Returns its answer, or the Problem."""
        try:
            return self.session.ask(RunInLoop(work))
        except Problem as problem:
            return problem

    def settle(self) -> None:
        """Return when the loop has no work left, or has ended."""
        for _ in range(2_000):
            if not self.session.running or not isinstance(self.ask(lambda: None), Problem):
                return
            gevent.sleep(0.01)
        raise AssertionError("the loop does not finish its work")

    def die(self) -> None:
        """End the process: its memory is lost, its connections and its file lock are closed."""

        def end() -> None:
            raise gevent.GreenletExit

        if not self._closed and hasattr(self, "session") and self.session.running:
            self.ask(end)
        self.close()

    def close(self) -> None:
        """Close the connections of the process."""
        if not self._closed:
            self._closed = True
            self.store.close()
            self.owners.close()


# ---- the stored keys --------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredKeys:
    """All keys of one session by suffix. The ledger is represented by its length and its last id."""

    meta: dict[str, str] = field(default_factory=dict)
    queue: dict[str, int] = field(default_factory=dict)
    tickets: dict[str, str] = field(default_factory=dict)
    strings: dict[str, str] = field(default_factory=dict)
    ledger: tuple[int, str] = (0, "")

    @property
    def version(self) -> int:
        return int(self.meta.get("version", 0))

    def text(self, name: str) -> Any:
        """Return a string's JSON, or None."""
        return json.loads(self.strings[name]) if name in self.strings else None


class RawRedis:
    """Reads the stored keys without any code of the service."""

    def __init__(self, url: str, name: str) -> None:
        self.redis = redis_library.Redis.from_url(url, decode_responses=True)
        self._bytes = redis_library.Redis.from_url(url)
        self.base = f"sessiond:{{{name}}}:"

    def _keys(self) -> list[str]:
        return sorted(self.redis.keys(f"{self.base}*"))

    def read_keys(self) -> StoredKeys:
        fixed = ("meta", "queue", "tickets", "ledger")
        names = [n for n in (k.removeprefix(self.base) for k in self._keys()) if n not in fixed]
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(f"{self.base}meta")
            pipe.zrange(f"{self.base}queue", 0, -1, withscores=True)
            pipe.hgetall(f"{self.base}tickets")
            pipe.xlen(f"{self.base}ledger")
            pipe.xrevrange(f"{self.base}ledger", count=1)
            pipe.mget([f"{self.base}{name}" for name in names] or ["none"])
            meta, queue, tickets, length, last, strings = pipe.execute()
        scores = {ticket: int(score) for ticket, score in queue}
        kept = dict(zip(names, strings, strict=False))
        return StoredKeys(meta, scores, tickets, kept, (length, last[0][0] if last else ""))

    def entries(self, after: str = "") -> list[dict[str, Any]]:
        """Return the ledger's entries behind this id, as HTTP returns them without `at`."""
        found = self.redis.xrange(f"{self.base}ledger", min=f"({after}" if after else "-")
        return [
            {
                **json.loads(entry["data"]), "id": at, "event": entry["event"], "epoch": int(entry["epoch"]),
                "version": int(entry["version"]),
            }
            for at, entry in found
        ]  # fmt: skip

    def dump(self) -> dict[str, bytes]:
        """Return everything, for `restore`."""
        return {key: self._bytes.dump(key) for key in self._keys()}

    def restore(self, dump: dict[str, bytes]) -> None:
        """Restore a dump. Redis loses every later write."""
        for key in self._keys():
            self.redis.delete(key)
        for key, value in dump.items():
            self._bytes.restore(key, 0, value)

    def close(self) -> None:
        self.redis.close()
        self._bytes.close()
