"""Random histories on the pure machines and through the real store with a real Redis give the same; see histories.py."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from servers import Redis
from size import FULL
from store.histories import Histories

SEEDS = range(1, 9) if FULL else range(1, 2)
EXAMPLES = 60 if FULL else 15


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    made = Redis()
    with structlog.testing.capture_logs():
        yield made
    made.close()


@pytest.mark.parametrize("number", SEEDS)
def test_any_history_gives_the_same_in_redis_as_on_the_pure_machine(
    number: int, server: Redis, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    import time
    begun=time.process_time()
    counts: Counter[str] = Counter()
    histories = seed(number)(type("Histories", (Histories,), {"server": server, "place": tmp_path, "counts": counts}))
    run_state_machine_as_test(
        histories,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=100, deadline=None, database=None,
            phases=(Phase.generate,), suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        ),
    )  # fmt: skip
    figures(f"CPU {time.process_time()-begun}")
    figures(str(sorted(counts.items())))
