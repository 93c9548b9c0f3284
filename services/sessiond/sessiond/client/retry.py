"""Retries with exponential backoff, and the clock that they use."""

import random
import time
from dataclasses import dataclass, field

from sessiond.client.errors import SessiondError, Timeout, Unavailable

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Return seconds on a clock that never jumps and also runs while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    now = time.monotonic


@dataclass(slots=True)
class Backoff:
    """Waits between attempts: exponential, with jitter, and at least `Retry-After`.

    `max_outage` is the time in seconds for which the server may be unavailable without a break. `deadline` is the
    time on `now()` after which the caller wants no further attempt.
    """

    max_outage: float
    deadline: float | None = None
    first: float = 0.05
    most: float = 3.0
    _failures: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    def reset(self) -> None:
        """Record that the server answered."""
        self._failures = 0

    def left(self) -> float | None:
        """Return the seconds until the deadline, or None if there is no deadline.

        Raises:
            Timeout: the deadline has passed.
        """
        if self.deadline is None:
            return None
        left = self.deadline - now()
        if left <= 0:
            raise Timeout("the lease was not granted in time")
        return left

    def wait(self, failure: SessiondError) -> None:
        """Sleep before the next attempt.

        Raises:
            SessiondError: `failure` itself, when the server has been unavailable for longer than `max_outage`.
            Timeout: the deadline has passed.
        """
        if not self._failures:
            self._since = now()
        pause = min(self.most, self.first * 2**self._failures) * random.uniform(0.5, 1.0)
        if isinstance(failure, Unavailable) and failure.retry_after is not None:
            # Jitter here too: the server sends all callers the same number of seconds.
            pause = max(pause, failure.retry_after * random.uniform(1.0, 1.1))
        self._failures += 1
        if now() + pause - self._since > self.max_outage:
            raise failure
        left = self.left()
        time.sleep(pause if left is None else min(pause, left))
