"""Which environment variables each service reads, and the OpenAPI document without its sentences."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from sessiond import client as client_module
from sessiond import settings as sessiond_settings
from sessiond_common import fault_points
from sessiond_common.env import load
from sessiond_common.metrics.settings import read_metrics
from sessiond_ops import sessionctl, up
from sessiond_webhook.handler import settings as handler_settings
from sessiond_webhook.ingress import settings as webhook_settings
from sessiond_webhook.poster import settings as poster_settings
from sessiond_worker import cli as worker_commands
from sessiond_worker import settings as worker_settings
from support.goldens.mask import SENTENCE
from support.webhook import payloads


class RecordingEnviron(dict[str, str]):
    """An environment that records which variables are read."""

    def __init__(self, **given: str) -> None:
        super().__init__(given)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)


SETTINGS_READERS: Mapping[str, tuple[Callable[[Any], Any], tuple[Mapping[str, str], ...]]] = {
    "sessiond": (sessiond_settings.from_env, ({},)),
    "webhook": (webhook_settings.from_env, ({"WEBHOOK_SECRET": "x"}, {})),
    "handler": (handler_settings.from_env, ({},)),
    "poster": (poster_settings.poster_settings, ({},)),
    "worker": (worker_settings.from_env, ({"SESSIOND_KEY": "x"}, {})),
    "task": (worker_commands.redis_url, ({},)),
    "up": (up.settings_from, ({},)),
}
"""The functions that read settings, each with environments in which it reads as many variables as possible."""

PROCESS_ENVIRON_READERS: Mapping[str, Callable[[], Any]] = {
    "metrics": lambda: load(read_metrics, os.environ),
    "hooks": lambda: fault_points.hold("x"),
    "client": lambda: client_module.connect(),
    "sessionctl send": lambda: sessionctl.main(["send", str(payloads.DATA / "ping.json"), "--event", "ping"]),
    "sessionctl status": lambda: sessionctl.main(["status", "--url", "http://127.0.0.1:1"]),
    "sessionctl task add": lambda: sessionctl.main(["task", "add", "octo/hello", "A title"]),
}
"""Functions that read settings from the environment of their own process."""


def without_sentences(value: Any, key: str = "") -> Any:
    """Return the document with every description and summary masked."""
    if isinstance(value, dict):
        return {name: without_sentences(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [without_sentences(one, key) for one in value]
    return SENTENCE if key in ("description", "summary") and isinstance(value, str) else value
