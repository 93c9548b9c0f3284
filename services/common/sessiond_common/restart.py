"""Pauses between the restarts of a process or loop that ends by itself."""


class RestartBackoff:
    """Doubling pauses. A life longer than `steady` seconds begins with the first pause again."""

    def __init__(self, first: float, longest: float, steady: float) -> None:
        self._first, self._longest, self._steady = first, longest, steady
        self._pause = first

    def pause_after(self, lived: float) -> float:
        """Return the seconds to wait before the next start, after a life of `lived` seconds."""
        if lived > self._steady:
            self._pause = self._first
        pause, self._pause = self._pause, min(self._longest, self._pause * 2)
        return pause
