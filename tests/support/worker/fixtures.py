"""The fixture `scene`: Redis, sessiond and a real worker."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.servers import Redis, Sessiond
from support.worker.worker_scene import Scene, Worker, service_env


@pytest.fixture
def scene(redis_server: Redis, sessiond: Callable[..., Sessiond], tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """Start sessiond and a worker: scene(*faults, env=the worker's environment, **times of sessiond)."""
    with ExitStack() as stack:

        def start(*faults: str, env: Mapping[str, str] | None = None, **times: float) -> Scene:
            service = sessiond(service_env(*faults, **times))
            worker = Worker(redis_server.url, service, tmp_path / "worker", env)
            stack.callback(worker.close)
            return Scene(redis_server, service, worker, tmp_path)

        yield start
