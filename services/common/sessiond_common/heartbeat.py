"""A thread that keeps a lease in Redis alive while its holder works."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

import redis

JOIN_SECONDS: Final = 2.0


class Heartbeat:
    """Calls `beat` in a daemon thread, every `interval` seconds, until `stop` or until `beat` returns False.

    `beat` renews the lease and returns whether it is still held. When it raises redis.RedisError, `on_error` gets the
    error, and the next beat follows after `retry` seconds (default: `interval`). Both run in the heartbeat's thread.
    """

    def __init__(
        self,
        name: str,
        interval: float,
        beat: Callable[[], bool],
        on_error: Callable[[redis.RedisError], None],
        retry: float | None = None,
    ) -> None:
        self._interval, self._retry = interval, interval if retry is None else retry
        self._beat, self._on_error = beat, on_error
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def start(self) -> None:
        """Start the thread. Its first beat comes after `interval` seconds."""
        self._thread.start()

    def stop(self, patience: float = JOIN_SECONDS) -> None:
        """Stop the thread. Waits at most `patience` seconds for a beat that is under way."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(patience)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the thread inside the `with` block."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def _run(self) -> None:
        pause = self._interval
        while not self._stopped.wait(pause):
            pause = self._interval
            try:
                if not self._beat():
                    return
            except redis.RedisError as error:
                self._on_error(error)
                pause = self._retry
