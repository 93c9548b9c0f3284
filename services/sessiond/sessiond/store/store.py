"""A session's state in Redis: one script call for each step, and reads.

The step script compares (epoch, version), applies the computed commands and appends to the ledger. It then sets
version + 1 and the step's id, and advances the owner's beat. The same id again changes nothing.

The script has one rule of its own: a grant must be the head of the sorted set, apart from the tickets that the
step names as skipped. So the set in Redis decides about grants, not a copy of it.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import orjson

from sessiond.store import codec
from sessiond.store.codec import Meta, Raw, RedisCommand, Stored
from sessiond.store.connection import RedisConnections, Script, StoreError
from sessiond.store.ledger import entry_of

LEDGER_LENGTH: Final = 200_000
RECENT: Final = 256
"""How many of the latest SETEX commands are kept, for a step that writes back what Redis lost."""
RECENT_SIZE: Final = 32 * 2**20
"""Total size of these commands in characters. A single one may have a few MB."""
SESSIONS_KEY: Final = "sessiond:sessions"

# ARGV: epoch, version, step id, JSON of {commands, ledger, grant, skipped, reset, live, instance}
STEP: Final = Script(
    """
local base, epoch, version, id = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local step = cjson.decode(ARGV[4])
local meta = base .. 'meta'
local now = redis.call('HMGET', meta, 'epoch', 'version', 'step', 'instance', 'url')
local at_epoch, at_version = tonumber(now[1] or '0') or 0, tonumber(now[2] or '0') or 0
if now[3] == id then return {'REPEATED'} end
if at_epoch > epoch or (at_epoch == epoch and now[4] and now[4] ~= '' and now[4] ~= step.instance) then
  return {'DEPOSED', tostring(at_epoch), now[4] or '', now[5] or ''}
end
local behind = at_epoch < epoch or at_version < version
if behind and not step.reset then return {'BEHIND', tostring(at_version)} end
if not behind and at_version > version then return {'AHEAD', tostring(at_version)} end
if step.grant ~= '' then
  local scores, skipped = {}, {}
  local set = redis.call('ZRANGE', base .. 'queue', 0, -1, 'WITHSCORES')
  for i = 1, #set, 2 do scores[set[i]] = tonumber(set[i + 1]) end
  for _, c in ipairs(step.commands) do
    if c[2] == 'queue' and c[1] == 'ZADD' then scores[c[4]] = tonumber(c[3]) end
    if c[2] == 'queue' and c[1] == 'ZREM' and c[3] ~= step.grant then scores[c[3]] = nil end
  end
  for _, t in ipairs(step.skipped) do skipped[t] = true end
  local mine = scores[step.grant]
  if not mine then return {'NOTHEAD', step.grant, ''} end
  for t, score in pairs(scores) do
    if score < mine and not skipped[t] then return {'NOTHEAD', step.grant, t} end
  end
end
if step.reset then
  for _, name in ipairs(step.live) do redis.call('DEL', base .. name) end
end
for _, c in ipairs(step.commands) do
  local args = {}
  for i = 3, #c do args[#args + 1] = c[i] end
  redis.call(c[1], base .. c[2], unpack(args))
end
for _, e in ipairs(step.ledger) do
  redis.call('XADD', base .. 'ledger', 'MAXLEN', '~', step.length, '*',
    'event', e[1], 'epoch', ARGV[1], 'version', tostring(version + 1), 'data', e[2])
end
redis.call('HSET', meta, 'epoch', ARGV[1], 'version', tostring(version + 1), 'step', id)
redis.call('HINCRBY', meta, 'beat', 1)
return {'APPLIED'}
"""
)
ALLOWED: Final = frozenset({"ZADD", "ZREM", "HSET", "HDEL", "SET", "SETEX", "DEL"})


class CommitResult(Enum):
    """Whether the step was applied now or had been applied before."""

    APPLIED = "APPLIED"
    REPEATED = "REPEATED"


class Deposed(StoreError):
    """Another instance owns the session."""

    def __init__(self, epoch: int, instance: str, url: str) -> None:
        super().__init__(f"epoch {epoch} of {instance} at {url}")
        self.epoch, self.instance, self.url = epoch, instance, url


class Behind(StoreError):
    """The stored state is older than the owner's: Redis lost writes. `stored_version` is the stored version."""

    def __init__(self, stored_version: int) -> None:
        super().__init__(f"stored version {stored_version}")
        self.stored_version = stored_version


class Ahead(Behind):
    """The stored state is newer than the owner's in the owner's own epoch: there is a second writer."""


class NotHead(StoreError):
    """The step would grant a ticket ahead of one that it does not name as skipped."""

    def __init__(self, ticket: str, head: str) -> None:
        super().__init__(f"{ticket} is not the head; {head + ' is ahead of it' if head else 'it is not in the queue'}")
        self.ticket, self.head = ticket, head


@dataclass(slots=True)
class StoreStep:
    """One step to commit. `version` is the stored version that it expects. `reset` rewrites the whole state."""

    epoch: int
    version: int
    step_id: str
    commands: list[RedisCommand] = field(default_factory=list)
    ledger: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    grant: tuple[str, frozenset[str]] | None = None
    reset: bool = False


class Store:
    """One session's keys in Redis. Steps use a connection of their own.

    Raises:
        RedisUnavailable: from any method, when Redis cannot be reached or cannot serve.
    """

    def __init__(self, redis_url: str, name: str, instance: str = "") -> None:
        self.name = name
        self.instance = instance
        self.base = f"sessiond:{{{name}}}:"
        self._steps = RedisConnections(redis_url, single=True)
        self._reads = RedisConnections(redis_url)
        self._waits = RedisConnections(redis_url, deadline=70.0)
        self._recent: deque[RedisCommand] = deque()
        self._recent_size = 0
        self._at = (0, 0)

    def commit(self, step: StoreStep) -> CommitResult:
        """Apply the step. A repeated call with the same step id changes nothing.

        Raises:
            Deposed: another instance owns the session. Nothing was applied.
            Behind: Redis lost writes. Nothing was applied.
            Ahead: there is a second writer. Nothing was applied.
            NotHead: the grant is not the head of the queue. Nothing was applied.
            RedisUnavailable: Redis did not answer. The step may have been applied.
        """
        for command in step.commands:
            if command[0] not in ALLOWED:
                raise ValueError(f"a step may not use the Redis command {command[0]}")
        if step.reset:  # Redis may also have lost the session's name
            self._steps.call("SADD", SESSIONS_KEY, self.name)
        answer = self._steps.run(STEP, self.base, [str(step.epoch), str(step.version), step.step_id, self._body(step)])
        match answer[0]:
            case "DEPOSED":
                raise Deposed(int(answer[1]), answer[2], answer[3])
            case "BEHIND":
                raise Behind(int(answer[1]))
            case "AHEAD":
                raise Ahead(int(answer[1]))
            case "NOTHEAD":
                raise NotHead(answer[1], answer[2])
        self.confirm(step)
        return CommitResult(answer[0])

    def confirm(self, step: StoreStep) -> None:
        """Record that this step is in Redis. If the stored state is older from now on, Redis lost writes."""
        self._at = (step.epoch, step.version + 1)
        for command in step.commands:
            if command[0] == "SETEX":
                self._remember(command)

    def _remember(self, command: RedisCommand) -> None:
        self._recent.append(command)
        self._recent_size += len(command[-1])
        while len(self._recent) > RECENT or (self._recent_size > RECENT_SIZE and len(self._recent) > 1):
            self._recent_size -= len(self._recent.popleft()[-1])

    def _body(self, step: StoreStep) -> str:
        grant, skipped = step.grant or ("", frozenset())
        body = {
            "commands": step.commands,
            "ledger": [(event, codec.dumps(data)) for event, data in step.ledger],
            "grant": grant,
            "skipped": sorted(skipped),
            "reset": step.reset,
            "live": codec.LIVE_KEYS,
            "length": str(LEDGER_LENGTH),
            "instance": self.instance,
        }
        return orjson.dumps(body).decode()

    def recent_commands(self) -> list[RedisCommand]:
        """Return the latest SETEX commands, for a step that writes back what Redis lost."""
        return list(self._recent)

    def read_meta(self) -> Meta:
        """Read the `meta` hash, over the connection that carries steps."""
        return codec.load_meta(_pairs(self._steps.call("HGETALL", self.base + "meta")))

    def writable(self) -> None:
        """Check that Redis accepts writes, with a write that changes nothing.

        Raises:
            RedisUnavailable: Redis does not accept writes, even if it answers reads.
        """
        self._steps.call("SETRANGE", self.base + "probe", 0, "")

    def read_state(self) -> Stored:
        """Read the whole state in one transaction.

        Raises:
            BadRecord: the stored state is malformed.
        """
        base = self.base
        meta, queue, tickets, *strings = self._reads.transaction(
            [
                ("HGETALL", base + "meta"),
                ("ZRANGE", base + "queue", "0", "-1", "WITHSCORES"),
                ("HGETALL", base + "tickets"),
                *(("GET", base + name) for name in ("lease", "drain", "open", "agent")),
            ]
        )
        scores = tuple((member, int(float(score))) for member, score in _scored(queue))
        return codec.load(Raw(_pairs(meta), scores, _pairs(tickets), *strings))

    def get(self, suffix: str) -> str | None:
        """Read one string.

        Raises:
            Behind: Redis lost writes, so the value may be outdated or missing.
        """
        expected = self._at
        meta, value = self._reads.transaction(
            [("HMGET", self.base + "meta", "epoch", "version"), ("GET", self.base + suffix)]
        )
        at = (int(meta[0] or 0), int(meta[1] or 0))
        if at < expected:
            raise Behind(at[1])
        found: str | None = value
        return found

    def ledger(self, after: str | None, count: int) -> list[dict[str, Any]]:
        """Return at most `count` entries after the id `after` (None: from the first one)."""
        start = f"({after}" if after else "-"
        found = self._reads.call("XRANGE", self.base + "ledger", start, "+", "COUNT", count)
        return [entry_of(*one) for one in found]

    def ledger_before(self, before: str | None, count: int) -> list[dict[str, Any]]:
        """Return at most `count` entries before the id `before` (None: from the last one), newest first."""
        end = f"({before}" if before else "+"
        found = self._reads.call("XREVRANGE", self.base + "ledger", end, "-", "COUNT", count)
        return [entry_of(*one) for one in found]

    def ledger_wait(self, after: str | None, milliseconds: int, count: int = 500) -> list[dict[str, Any]]:
        """Return entries after the id `after`. Wait up to `milliseconds` (at most 60 s) for the first one."""
        call = ("XREAD", "COUNT", count, "BLOCK", max(1, milliseconds), "STREAMS", self.base + "ledger", after or "0")
        found = self._waits.call(*call)
        if not found:
            return []
        streams = found.values() if isinstance(found, dict) else [stream[1] for stream in found]
        return [entry_of(*one) for stream in streams for one in stream]

    def close(self) -> None:
        """Close the connections."""
        for link in (self._steps, self._reads, self._waits):
            link.close()


def _pairs(answer: Any) -> dict[str, str]:
    return answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))


def _scored(answer: Any) -> list[tuple[str, Any]]:
    if answer and not isinstance(answer[0], (tuple, list)):
        return list(zip(answer[::2], answer[1::2], strict=True))
    return [tuple(pair) for pair in answer]
