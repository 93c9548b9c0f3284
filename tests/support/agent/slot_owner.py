"""The owner of an agent slot, for tests of one agent."""


class Owner:
    """An owner whose agent never sleeps."""

    def may_sleep(self) -> float | None:
        return None

    def sleep_now(self) -> None:
        raise AssertionError("an agent that may not sleep was asked to sleep")
