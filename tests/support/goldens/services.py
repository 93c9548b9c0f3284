"""What the scenes of all services share: process modules, settings, concurrency, and the check of problem types."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.goldens.files import Golden

PROCESS_MODULES: Mapping[str, str] = {
    "sessiond": "sessiond.main",
    "sessionctl": "sessiond_ops.sessionctl",
    "webhook": "sessiond_webhook",
    "handler": "sessiond_webhook.handler",
    "poster": "sessiond_webhook.poster",
    "worker": "sessiond_worker",
}
"""The module that `python -m` runs for each process."""

LONG_TIMES = {
    "lease_ttl": 300,
    "claim_window": 100,
    "head_wait": 100,
    "poll_grace": 100,
    "drain_deadline": 60,
    "absence": 300,
}
"""Deadlines that no scene reaches. A scene that tests one deadline has its own service with a short one."""


def run_concurrently(*functions: Callable[[], Any]) -> list[Any]:
    """Call all functions at the same time. Return their results in order."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def check_problem_types(golden: Golden, kinds: Mapping[str, Any], unreached: Mapping[str, str]) -> None:
    """Check that every problem type occurs in a recorded answer or is in `unreached`, and none in both."""
    text = json.dumps(golden.facts)
    reached = {kind for kind in kinds if f'"type": "{kind}"' in text}
    assert reached | unreached.keys() == set(kinds), (
        f"problem types in no recorded answer: {sorted(set(kinds) - reached - unreached.keys())}"
    )
    assert not reached & unreached.keys(), "a problem type is listed as unreached, but a recorded answer has it"
