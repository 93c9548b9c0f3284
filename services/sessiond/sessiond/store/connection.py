"""Connections to Redis with a deadline and without retries, and scripts that run by their hash.

redis-py repeats a command whose answer was lost, which runs a script twice. Here a lost answer raises
`RedisUnavailable`, and the caller decides whether to repeat the script.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

CONNECT_DEADLINE: Final = 2.0
CALL_DEADLINE: Final = 4.0
"""Seconds that a call may take. Below `owner_ttl`, so that an owner notices an outage before it is replaced."""

# The server runs but cannot serve now. A script gets these errors before its first write, so it changed nothing.
_NOT_NOW: Final = (
    redis.exceptions.ClusterDownError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
)
_NOT_NOW_CODES: Final = ("BUSY", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "UNBLOCKED")

_T = TypeVar("_T")


class StoreError(Exception):
    """Base of the store's errors."""


class RedisUnavailable(StoreError):
    """Redis did not answer in time, or cannot serve now. Whether the call ran is unknown."""


class Broken(StoreError):
    """Redis answered with an error that a retry cannot fix: a bug, or a missing permission."""


class Script:
    """A Lua script, which the server runs by its hash."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _ScriptMissing(Exception):
    """The server does not have the script."""


class RedisConnections:
    """Connections to one Redis. It connects at the first call, and again after a failure.

    With `single`, all calls use one connection and run one after the other (steps). Otherwise calls take
    connections from a pool (reads, from any number of greenlets). `deadline` is in seconds and must exceed the
    time of a blocking read.

    Raises:
        RedisUnavailable: from any call; see the class.
        Broken: from any call; see the class. redis-py's own errors never leave this class.
    """

    def __init__(self, url: str, *, single: bool = False, deadline: float = CALL_DEADLINE) -> None:
        self._url = url
        self._single = single
        self._deadline = deadline
        self._client: Any = None

    def call(self, *command: str | int) -> Any:
        """Run one command. Return its answer as redis-py decodes it."""
        return self._guarded(lambda client: client.execute_command(*command))

    def transaction(self, commands: Sequence[tuple[str, ...]]) -> list[Any]:
        """Run the commands in one MULTI, so that their answers are consistent."""

        def work(client: Any) -> list[Any]:
            with client.pipeline(transaction=True) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                answers: list[Any] = pipe.execute()
            return answers

        return self._guarded(work)

    def run(self, script: Script, key: str, args: Sequence[str]) -> Any:
        """Run one EVALSHA on one key.

        If the server does not have the script, load it and run it once more. That is safe: it did not run before.
        """
        call = ("EVALSHA", script.sha, "1", key, *args)
        try:
            return self.call(*call)
        except _ScriptMissing:
            self.call("SCRIPT LOAD", script.text)
        try:
            return self.call(*call)
        except _ScriptMissing as error:
            raise RedisUnavailable("Redis lost a script right after it was loaded") from error

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
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
            raise _ScriptMissing(str(error)) from error
        except (redis.ConnectionError, redis.TimeoutError, *_NOT_NOW) as error:
            raise RedisUnavailable(str(error) or type(error).__name__) from error
        except redis.RedisError as error:
            if str(error).startswith(_NOT_NOW_CODES):
                raise RedisUnavailable(str(error)) from error
            raise Broken(str(error)) from error
        except OSError as error:
            raise RedisUnavailable(str(error)) from error
        except BaseException:
            # A greenlet that is killed during a call leaves an unread answer on the connection. The next call
            # would read it as its own.
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
