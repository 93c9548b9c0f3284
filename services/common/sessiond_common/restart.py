"""Pauses between the restarts of a process or loop that ends by itself."""


class RestartBackoff:
    """Pauses that double. After a run of more than `steady` seconds, the next pause is the first one again."""

    def __init__(self, first: float, longest: float, steady: float) -> None:
        self._first, self._longest, self._steady = first, longest, steady
        self._pause = first

    def pause_after(self, run_seconds: float) -> float:
        """Return the seconds to wait before the next start, after a run of `run_seconds`."""
        if run_seconds > self._steady:
            self._pause = self._first
        pause, self._pause = self._pause, min(self._longest, self._pause * 2)
        return pause
