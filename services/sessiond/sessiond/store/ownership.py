"""Ownership of sessions: the owner record, its epoch and its beat.

epoch = max(stored + 1, Redis TIME in seconds), so that it grows even if Redis lost everything. The record does
not expire. Another instance may take it over after the beat has not moved for `owner_ttl` on that instance's
monotonic clock. The file lock in the state directory proves at once that a local predecessor is dead.
"""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sessiond.store.connection import RedisConnections, Script
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
    """Another instance owns the session, or may still own it. `url` is that instance's URL."""

    def __init__(self, instance: str, url: str) -> None:
        super().__init__(f"{instance} at {url}")
        self.instance, self.url = instance, url


class FileLock:
    """The lock of the state directory. Its holder knows that no local predecessor runs."""

    def __init__(self, state_dir: Path) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(state_dir / "sessiond.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        except BlockingIOError:
            self.held = False

    def release(self) -> None:
        """Release the lock. The kernel also does so when the process ends for any reason."""
        os.close(self._fd)
        self.held = False


@dataclass(frozen=True, slots=True)
class Ownership:
    """An acquired session: our epoch, the stored version, and the previous owner's instance ('' for none)."""

    epoch: int
    version: int
    predecessor: str


@dataclass(slots=True)
class _Observed:
    """Another instance's owner record as last read.

    Since the time `since`, its beat has not moved. With `older`, Redis has had an older record since then.
    """

    instance: str
    url: str
    beat: str
    epoch: int
    version: int
    since: float
    older: bool = False


@dataclass(frozen=True, slots=True)
class Instance:
    """A sessiond instance: its name, its URL, its state directory, and its host's name."""

    name: str
    url: str
    state_dir: Path
    host: str


class OwnershipStore:
    """Acquires, renews and releases this instance's ownership of sessions."""

    def __init__(self, redis_url: str, instance: Instance, owner_ttl: float) -> None:
        self._instance = instance
        self._state_dir = str(instance.state_dir.resolve())
        self._ttl = owner_ttl
        self._lock = FileLock(instance.state_dir)
        self._redis = RedisConnections(redis_url)
        self._observed: dict[str, _Observed] = {}

    def acquire(self, name: str) -> Ownership:
        """Acquire ownership of the session.

        Raises:
            OtherOwner: another instance owns the session, or may still own it.
            RedisUnavailable: Redis cannot be reached.
        """
        self._redis.call("SADD", SESSIONS_KEY, name)
        answer = self._try(name, "", "")
        if answer[0] == "OLDER":
            self._await_restore(name)
            answer = self._try(name, "", "")
        if answer[0] == "HELD" and self._is_dead(name, answer):
            answer = self._try(name, answer[1], answer[3])
        if answer[0] == "HELD":
            raise OtherOwner(answer[1], answer[2])
        self._observed.pop(name, None)
        return Ownership(int(answer[1]), int(answer[2]), answer[3])

    def _try(self, name: str, dead: str, beat: str) -> list[str]:
        seen = self._observed.get(name)
        least = ["0", "0"] if seen is None else [str(seen.epoch), str(seen.version)]
        args = [self._instance.name, self._instance.url, self._state_dir, self._instance.host, dead, beat, *least]
        answer: list[str] = self._redis.run(ACQUIRE, _base(name), args)
        return answer

    def _await_restore(self, name: str) -> None:
        """Wait for `owner_ttl` after Redis lost writes: a running owner writes its state back within that time.

        Raises:
            OtherOwner: the time is not over yet.
        """
        seen, now = self._observed[name], time.monotonic()
        if seen.older and now - seen.since >= self._ttl:
            del self._observed[name]
            return
        if not seen.older:
            seen.older, seen.since = True, now
        raise OtherOwner(seen.instance, seen.url)

    def _is_dead(self, name: str, held: list[str]) -> bool:
        _, instance, url, beat, state_dir, host, epoch, version = held
        if self._lock.held and state_dir == self._state_dir and host == self._instance.host:
            return True
        seen, now = self._observed.get(name), time.monotonic()
        known = seen is not None and not seen.older and (seen.instance, seen.beat) == (instance, beat)
        since = seen.since if seen is not None and known else now
        self._observed[name] = _Observed(instance, url, beat, int(epoch), int(version), since)
        return known and now - since >= self._ttl

    def renew(self, name: str, epoch: int, version: int) -> str | None:
        """Advance the beat. Return None, or the URL of the instance that deposed us ('' if unknown).

        Raises:
            Behind: a version lower than `version` is stored. Redis lost writes.
            RedisUnavailable: Redis cannot be reached.
        """
        answer = self._redis.run(RENEW, _base(name), [self._instance.name, str(epoch), str(version)])
        if answer[0] == "BEHIND":
            raise Behind(int(answer[1]))
        return None if answer[0] == "RENEWED" else str(answer[1])

    def release(self, name: str, epoch: int) -> None:
        """Release ownership, so that another instance can acquire the session at once.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        self._redis.run(RELEASE, _base(name), [self._instance.name, str(epoch)])

    def known(self) -> list[str]:
        """Return the names of all sessions that any instance ever owned, sorted.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        return sorted(self._redis.call("SMEMBERS", SESSIONS_KEY))

    def knows(self, name: str) -> bool:
        """Return whether any instance ever owned the session.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        return bool(self._redis.call("SISMEMBER", SESSIONS_KEY, name))

    def close(self) -> None:
        """Close the connections and release the file lock."""
        self._redis.close()
        self._lock.release()


def _base(name: str) -> str:
    return f"sessiond:{{{name}}}:"
