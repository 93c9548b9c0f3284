"""Pauses between restarts: they double up to a limit, and a long run resets them."""

from sessiond_common.restart import RestartBackoff


def test_pauses_double_up_to_the_limit() -> None:
    backoff = RestartBackoff(first=0.5, longest=3.0, steady=60.0)
    assert [backoff.pause_after(0.0) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_long_run_resets_the_pauses() -> None:
    backoff = RestartBackoff(first=0.5, longest=3.0, steady=60.0)
    assert [backoff.pause_after(lived) for lived in (1, 1, 60, 61, 1)] == [0.5, 1.0, 2.0, 0.5, 1.0]
