"""How long a caller waits for a server that is away, and on which clock."""

import random
import time
from dataclasses import dataclass, field

from sessiond.client.errors import SessiondError, Timeout, Unavailable

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Seconds on a clock that never jumps and also counts while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    now = time.monotonic


@dataclass(slots=True)
class Backoff:
    """Waits between attempts: doubling, with jitter, `Retry-After` honoured.

    `patience` is the longest unbroken time, in seconds, that the server may be away; `deadline` the
    moment (on `now()`) at which the caller wants no more attempts, whatever happens.
    """

    patience: float
    deadline: float | None = None
    first: float = 0.05
    most: float = 3.0
    _failures: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    def reset(self) -> None:
        """The server answered."""
        self._failures = 0

    def left(self) -> float | None:
        """Seconds until the deadline, or None. Raises Timeout when there are none."""
        if self.deadline is None:
            return None
        left = self.deadline - now()
        if left <= 0:
            raise Timeout("not granted in time")
        return left

    def wait(self, failure: SessiondError) -> None:
        """Sleeps before the next attempt. Raises `failure` itself once patience is spent."""
        if not self._failures:
            self._since = now()
        pause = min(self.most, self.first * 2**self._failures) * random.uniform(0.5, 1.0)
        if isinstance(failure, Unavailable) and failure.retry_after is not None:
            # Spread too: everybody was told the same number of seconds.
            pause = max(pause, failure.retry_after * random.uniform(1.0, 1.1))
        self._failures += 1
        if now() + pause - self._since > self.patience:
            raise failure
        left = self.left()
        time.sleep(pause if left is None else min(pause, left))
