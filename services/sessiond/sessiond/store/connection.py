"""One door to Redis: connections with a deadline and without retries, and scripts by their hash.

redis-py repeats a command whose answer was lost, which runs a script twice; here a lost answer is
`Away`, and whoever sent the script decides what repeating it means.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

CONNECT_DEADLINE: Final = 2.0
CALL_DEADLINE: Final = 4.0
"""Seconds a call may take; below `owner_ttl`, so that an owner notices before it is replaced."""

# A server that is there but cannot serve just now. A script meets these before its first write, so
# nothing of it was applied.
_NOT_NOW: Final = (
    redis.exceptions.ClusterDownError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
)
_NOT_NOW_CODES: Final = ("BUSY", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "UNBLOCKED")

_T = TypeVar("_T")


class StoreError(Exception):
    """Anything that kept a call to the store from its ordinary answer."""


class Away(StoreError):
    """Redis did not answer, not in time, or cannot serve now. Whether the call ran is unknown."""


class Broken(StoreError):
    """Redis answered with an error that repeating the call does not cure: a bug, or no permission."""


class Script:
    """A Lua script, known to the server by its hash."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Unknown(Exception):
    """The server does not know the script."""


class Link:
    """Connections to one Redis. Connects at the first call, and again after a failure.

    `single` keeps to one connection, whose calls run one after the other (steps); otherwise they
    come from a pool (reads, from any number of greenlets). `deadline` in seconds must exceed what a
    blocking read asks for. A call raises Away or Broken, and nothing of redis-py's own.
    """

    def __init__(self, url: str, *, single: bool = False, deadline: float = CALL_DEADLINE) -> None:
        self._url = url
        self._single = single
        self._deadline = deadline
        self._client: Any = None

    def call(self, *command: str | int) -> Any:
        """One command; its answer as redis-py gives it, decoded."""
        return self._guarded(lambda client: client.execute_command(*command))

    def transaction(self, commands: Sequence[tuple[str, ...]]) -> list[Any]:
        """The commands as one MULTI, so that their answers belong together."""

        def work(client: Any) -> list[Any]:
            with client.pipeline(transaction=True) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                answers: list[Any] = pipe.execute()
            return answers

        return self._guarded(work)

    def run(self, script: Script, key: str, args: Sequence[str]) -> Any:
        """One EVALSHA on one key. A server that lost the script is given it and asked once more: it
        did not run the first time, so this is safe."""
        call = ("EVALSHA", script.sha, "1", key, *args)
        try:
            return self.call(*call)
        except _Unknown:
            self.call("SCRIPT LOAD", script.text)
        try:
            return self.call(*call)
        except _Unknown as error:
            raise Away("Redis forgot a script right after it was loaded") from error

    def close(self) -> None:
        """Closes the connections. A later call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
            client.connection_pool.disconnect()

    def _guarded(self, work: Callable[[Any], _T]) -> _T:
        try:
            if self._client is None:
                self._client = self._connected()
            return work(self._client)
        except redis.exceptions.NoScriptError as error:
            raise _Unknown(str(error)) from error
        except (redis.ConnectionError, redis.TimeoutError, *_NOT_NOW) as error:
            raise Away(str(error) or type(error).__name__) from error
        except redis.RedisError as error:
            if str(error).startswith(_NOT_NOW_CODES):
                raise Away(str(error)) from error
            raise Broken(str(error)) from error
        except OSError as error:
            raise Away(str(error)) from error
        except BaseException:
            # A greenlet killed in mid-call leaves its answer on the wire, where the next call
            # would take it for its own.
            if self._single:
                self.close()
            raise

    def _connected(self) -> Any:
        return redis.Redis.from_url(
            self._url,
            single_connection_client=self._single,
            decode_responses=True,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=self._deadline,
            socket_connect_timeout=CONNECT_DEADLINE,
        )
