"""A session's state in Redis: one script a step, and reads. The script has no rules but one check.

A step compares (epoch, version), applies computed commands, appends to the ledger, and sets
version + 1, its id and the owner's next beat; the same id again answers as the first time. A grant
must be the head of the sorted set, apart from the tickets that the step names: so it is the set in
Redis that grants.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import orjson

from sessiond.store import codec
from sessiond.store.codec import Command, Meta, Raw, Stored
from sessiond.store.connection import CALL_DEADLINE, Away, Link, Script, StoreError
from sessiond.store.ledger import entry_of

LEDGER_LENGTH: Final = 200_000
RECENT: Final = 256
RECENT_SIZE: Final = 32 * 2**20
"""Characters of them: some of a few MB each, and 256 would be too many to keep."""
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


class Outcome(Enum):
    """How a step that counts was answered."""

    APPLIED = "APPLIED"
    REPEATED = "REPEATED"


class Deposed(StoreError):
    """Another instance owns the session."""

    def __init__(self, epoch: int, instance: str, url: str) -> None:
        super().__init__(f"epoch {epoch} of {instance} at {url}")
        self.epoch, self.instance, self.url = epoch, instance, url


class Behind(StoreError):
    """The stored state is older than the owner's: Redis lost writes. `stored_version` is what is there."""

    def __init__(self, stored_version: int) -> None:
        super().__init__(f"stored version {stored_version}")
        self.stored_version = stored_version


class Ahead(Behind):
    """The stored state is newer than the owner's, in the owner's own epoch: a second writer."""


class NotHead(StoreError):
    """The step would grant a ticket over one that it does not name."""

    def __init__(self, ticket: str, head: str) -> None:
        super().__init__(f"{ticket} is not the head, {head or 'and not in the queue'}")
        self.ticket, self.head = ticket, head


@dataclass(slots=True)
class Step:
    """One step. `version` is the stored one that it expects; `reset` writes everything anew."""

    epoch: int
    version: int
    step_id: str
    commands: list[Command] = field(default_factory=list)
    ledger: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    grant: tuple[str, frozenset[str]] | None = None
    reset: bool = False


class Store:
    """One session's keys. Steps go over one connection; everything raises redis_link.Away."""

    def __init__(self, redis_url: str, name: str, instance: str = "") -> None:
        self.name = name
        self.instance = instance
        self.base = f"sessiond:{{{name}}}:"
        self._steps = Link(redis_url, single=True)
        self._reads = Link(redis_url)
        self._waits = Link(redis_url, deadline=70.0)
        self._recent: deque[Command] = deque()
        self._recent_size = 0
        self._at = (0, 0)

    def commit(self, step: Step) -> Outcome:
        """Applies the step, once however often it is asked.

        Raises Deposed, Behind, Ahead, NotHead (nothing was applied), Away (it may have been).
        """
        for command in step.commands:
            if command[0] not in ALLOWED:
                raise ValueError(f"{command[0]} is no command of a step")
        if step.reset:  # a Redis that lost writes may have lost that it knows the session
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
        return Outcome(answer[0])

    def confirm(self, step: Step) -> None:
        """This step of ours is in Redis: what is stored is never older from now on, or Redis lost writes."""
        self._at = (step.epoch, step.version + 1)
        for command in step.commands:
            if command[0] == "SETEX":
                self._remember(command)

    def _remember(self, command: Command) -> None:
        self._recent.append(command)
        self._recent_size += len(command[-1])
        while len(self._recent) > RECENT or (self._recent_size > RECENT_SIZE and len(self._recent) > 1):
            self._recent_size -= len(self._recent.popleft()[-1])

    def _body(self, step: Step) -> str:
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

    def recent_commands(self) -> list[Command]:
        """The last remembered strings, for a step that writes back what Redis lost."""
        return list(self._recent)

    def read_meta(self) -> Meta:
        """Who owns the session, how far it is; over the connection that carries steps."""
        return codec.load_meta(_pairs(self._steps.call("HGETALL", self.base + "meta")))

    def writable(self) -> None:
        """Raises Away when Redis takes no writes, be it that it answers reads: this one leaves nothing behind."""
        self._steps.call("SETRANGE", self.base + "probe", 0, "")

    def read_state(self) -> Stored:
        """Everything stored, read as one. Raises record.BadRecord."""
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
        """One string. Raises Behind: Redis lost writes, and this may be one of them."""
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
        """At most `count` entries behind the id `after` (None: from the first)."""
        start = f"({after}" if after else "-"
        found = self._reads.call("XRANGE", self.base + "ledger", start, "+", "COUNT", count)
        return [entry_of(*one) for one in found]

    def ledger_before(self, before: str | None, count: int) -> list[dict[str, Any]]:
        """At most `count` entries before the id `before` (None: from the last), the newest first."""
        end = f"({before}" if before else "+"
        found = self._reads.call("XREVRANGE", self.base + "ledger", end, "-", "COUNT", count)
        return [entry_of(*one) for one in found]

    def ledger_wait(self, after: str | None, milliseconds: int, count: int = 500) -> list[dict[str, Any]]:
        """The same, waiting at most so long (up to 60 s) for the first."""
        call = ("XREAD", "COUNT", count, "BLOCK", max(1, milliseconds), "STREAMS", self.base + "ledger", after or "0")
        found = self._waits.call(*call)
        if not found:
            return []
        streams = found.values() if isinstance(found, dict) else [stream[1] for stream in found]
        return [entry_of(*one) for stream in streams for one in stream]

    def close(self) -> None:
        """Closes the connections."""
        for link in (self._steps, self._reads, self._waits):
            link.close()


def _pairs(answer: Any) -> dict[str, str]:
    return answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))


def _scored(answer: Any) -> list[tuple[str, Any]]:
    if answer and not isinstance(answer[0], (tuple, list)):
        return list(zip(answer[::2], answer[1::2], strict=True))
    return [tuple(pair) for pair in answer]


__all__ = ["CALL_DEADLINE", "Ahead", "Away", "Behind", "Deposed", "NotHead", "Outcome", "Step", "Store"]
