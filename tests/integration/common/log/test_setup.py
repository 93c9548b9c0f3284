"""No log line of any logger, in either format, contains a secret or a text of people or agents."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sessiond_common.log.redact import HIDDEN
from support.servers import SERVICES

PROGRAM = """
import logging, sys, structlog
from sessiond_common.log.setup import configure
configure(sys.argv[1])
ours = structlog.get_logger("test")
structlog.contextvars.bind_contextvars(session="octo/hello", lease_secret="s3cr3t")
for key in sys.argv[2:]:
    ours.info("one", ticket="t-1", fence=7, **{key: "s3cr3t"})
    ours.warning("deep", headers={"X": [{key.upper(): "s3cr3t", "kept": "there"}]})
logging.getLogger("theirs").warning("other", extra={"token": "s3cr3t"})
"""


@pytest.mark.parametrize("fmt", ["console", "json"])
def test_hidden_keys_are_never_rendered(fmt: str) -> None:
    keys = [*HIDDEN, "Authorization", "webhook_secret", "api-token"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, fmt, *keys], env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(keys) + 1
    assert "s3cr3t" not in done.stderr
    assert done.stderr.count("there") == len(keys)
    assert all("octo/hello" in line for line in lines)
    if fmt == "json":
        first = json.loads(lines[0])
        assert (first["session"], first["ticket"], first["fence"]) == ("octo/hello", "t-1", 7)


def test_no_log_call_uses_a_hidden_key() -> None:
    """No call of a logger uses a hidden key."""
    for path in Path(SERVICES).rglob("*.py"):
        for call in path.read_text().split("log.")[1:]:
            if call.startswith(("info(", "warning(", "error(", "exception(")):
                words = call[: call.index("\n    ") if "\n    " in call else None]
                assert not any(f" {key}=" in words for key in HIDDEN), f"{path}: {words}"
