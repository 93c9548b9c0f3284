"""An owner of an agent slot, for tests of one agent."""


class Owner:
    """Never sleeps."""

    def may_sleep(self) -> float | None:
        return None

    def sleep_now(self) -> None:
        raise AssertionError("nobody asked")
