"""Who owns a session: the owner record, its epoch, its beat.

epoch = max(stored + 1, Redis TIME in seconds), so that it grows even over a Redis that lost all. The
record has no expiry: a contender watches, on its own monotonic clock, that the beat stood still for
`owner_ttl`, or proves a local predecessor dead by the file lock in the state directory.
"""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sessiond.store.connection import Link, Script
from sessiond.store.store import SESSIONS_KEY, Behind

ACQUIRE: Final = Script(
    """
local meta = KEYS[1] .. 'meta'
local now = redis.call('HMGET', meta, 'epoch', 'version', 'instance', 'url', 'beat', 'state_dir', 'host')
local at, version = tonumber(now[1] or '0') or 0, tonumber(now[2] or '0') or 0
local seen = tonumber(ARGV[7])
if at < seen or (at == seen and version < tonumber(ARGV[8])) then return {'OLDER'} end
local held = now[3] and now[3] ~= ''
if held and not (now[3] == ARGV[5] and (now[5] or '0') == ARGV[6]) then
  return {'HELD', now[3], now[4] or '', now[5] or '0', now[6] or '', now[7] or '', tostring(at), tostring(version)}
end
local epoch = math.max(at + 1, tonumber(redis.call('TIME')[1]))
redis.call('HSET', meta, 'epoch', tostring(epoch), 'version', now[2] or '0', 'instance', ARGV[1],
  'url', ARGV[2], 'state_dir', ARGV[3], 'host', ARGV[4], 'beat', '1')
return {'OWNED', tostring(epoch), now[2] or '0', now[3] or ''}
"""
)
# ARGV: instance, epoch, version
RENEW: Final = Script(
    """
local meta = KEYS[1] .. 'meta'
local now = redis.call('HMGET', meta, 'epoch', 'version', 'instance', 'url')
local epoch, version = tonumber(now[1] or '0') or 0, tonumber(now[2] or '0') or 0
local mine = tonumber(ARGV[2])
if epoch > mine or (epoch == mine and now[3] and now[3] ~= '' and now[3] ~= ARGV[1]) then
  return {'DEPOSED', now[4] or ''}
end
if epoch < mine or version < tonumber(ARGV[3]) then return {'BEHIND', tostring(version)} end
redis.call('HINCRBY', meta, 'beat', 1)
return {'RENEWED'}
"""
)
RELEASE: Final = Script(
    """
local meta = KEYS[1] .. 'meta'
local now = redis.call('HMGET', meta, 'epoch', 'instance')
if now[2] == ARGV[1] and now[1] == ARGV[2] then
  redis.call('HSET', meta, 'instance', '', 'url', '')
end
return {'DONE'}
"""
)


class OtherOwner(Exception):
    """Another instance owns the session, as far as can be known; `url` is its."""

    def __init__(self, instance: str, url: str) -> None:
        super().__init__(f"{instance} at {url}")
        self.instance, self.url = instance, url


class FileLock:
    """The state directory's lock: who holds it knows that no local predecessor lives."""

    def __init__(self, state_dir: Path) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(state_dir / "sessiond.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        except BlockingIOError:
            self.held = False

    def release(self) -> None:
        """Gives it up; also happens at the process's end, however that comes."""
        os.close(self._fd)
        self.held = False


@dataclass(frozen=True, slots=True)
class Owned:
    """The session is ours: its epoch, the stored version, the instance before us ('' for none)."""

    epoch: int
    version: int
    predecessor: str


@dataclass(slots=True)
class _Seen:
    """Another's claim as it was seen last; `since` its beat stands still, or Redis holds an older one."""

    instance: str
    url: str
    beat: str
    epoch: int
    version: int
    since: float
    older: bool = False


class Owners:
    """This instance's claims on sessions."""

    def __init__(self, redis_url: str, instance: str, url: str, state_dir: Path, host: str, owner_ttl: float) -> None:
        self.instance, self.url, self.host = instance, url, host
        self._state_dir = str(state_dir.resolve())
        self._ttl = owner_ttl
        self._lock = FileLock(state_dir)
        self._link = Link(redis_url)
        self._seen: dict[str, _Seen] = {}

    def acquire(self, name: str) -> Owned:
        """Makes the session ours. Raises OtherOwner while another's claim stands, Away without Redis."""
        self._link.call("SADD", SESSIONS_KEY, name)
        answer = self._try(name, "", "")
        if answer[0] == "OLDER":
            self._older(name)
            answer = self._try(name, "", "")
        if answer[0] == "HELD" and self._dead(name, answer):
            answer = self._try(name, answer[1], answer[3])
        if answer[0] == "HELD":
            raise OtherOwner(answer[1], answer[2])
        self._seen.pop(name, None)
        return Owned(int(answer[1]), int(answer[2]), answer[3])

    def _try(self, name: str, dead: str, beat: str) -> list[str]:
        seen = self._seen.get(name)
        least = ["0", "0"] if seen is None else [str(seen.epoch), str(seen.version)]
        args = [self.instance, self.url, self._state_dir, self.host, dead, beat, *least]
        answer: list[str] = self._link.run(ACQUIRE, _base(name), args)
        return answer

    def _older(self, name: str) -> None:
        """Redis lost writes: an owner that lives writes back what it has, within `owner_ttl`. Raises OtherOwner."""
        seen, now = self._seen[name], time.monotonic()
        if seen.older and now - seen.since >= self._ttl:
            del self._seen[name]
            return
        if not seen.older:
            seen.older, seen.since = True, now
        raise OtherOwner(seen.instance, seen.url)

    def _dead(self, name: str, held: list[str]) -> bool:
        _, instance, url, beat, state_dir, host, epoch, version = held
        if self._lock.held and state_dir == self._state_dir and host == self.host:
            return True
        seen, now = self._seen.get(name), time.monotonic()
        known = seen is not None and not seen.older and (seen.instance, seen.beat) == (instance, beat)
        since = seen.since if seen is not None and known else now
        self._seen[name] = _Seen(instance, url, beat, int(epoch), int(version), since)
        return known and now - since >= self._ttl

    def renew(self, name: str, epoch: int, version: int) -> str | None:
        """The beat goes on. Returns None, or the url of who deposed us ('' if unknown).

        Raises Behind when less than this `version` of ours is stored, Away.
        """
        answer = self._link.run(RENEW, _base(name), [self.instance, str(epoch), str(version)])
        if answer[0] == "BEHIND":
            raise Behind(int(answer[1]))
        return None if answer[0] == "RENEWED" else str(answer[1])

    def release(self, name: str, epoch: int) -> None:
        """Gives the session up, so that another may take it at once. Raises Away."""
        self._link.run(RELEASE, _base(name), [self.instance, str(epoch)])

    def known(self) -> list[str]:
        """Every session that was ever owned here. Raises Away."""
        return sorted(self._link.call("SMEMBERS", SESSIONS_KEY))

    def knows(self, name: str) -> bool:
        """Whether anybody ever owned the session. Raises Away."""
        return bool(self._link.call("SISMEMBER", SESSIONS_KEY, name))

    def close(self) -> None:
        """Ends connections and the file lock."""
        self._link.close()
        self._lock.release()


def _base(name: str) -> str:
    return f"sessiond:{{{name}}}:"
