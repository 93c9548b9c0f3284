"""Where a process that takes jobs serves `/metrics`, from the environment."""

from dataclasses import dataclass
from typing import Final

from sessiond_common.env import Env


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Port and address. With port 0, nothing is served."""

    port: int = 0
    host: str = "127.0.0.1"


OFF: Final = MetricsSettings()


def read_metrics(env: Env) -> MetricsSettings:
    """Read METRICS_PORT and METRICS_HOST."""
    return MetricsSettings(
        env.port("METRICS_PORT", 0, "port on which /metrics is served; not served by default"),
        env.text("METRICS_HOST", "127.0.0.1", "address on which /metrics is served"),
    )
