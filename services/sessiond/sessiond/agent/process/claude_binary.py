"""The agent's binary: its path, its command line and its environment.

docs/reference/agent-protocol.md has the facts and their sources. The binary comes with the pinned wheel
`claude-agent-sdk` and is found without importing that package.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sessiond.agent.permissions import NEVER, OUTSIDE


class NoClaude(Exception):
    """The binary is not installed. The text says in one line what to do."""


PASSED: Final = (
    "PATH", "LANG", "LC_ALL", "TZ", "TERM", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL",
    "ANTHROPIC_MODEL", "CLAUDE_CODE_OAUTH_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
    "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS",
)  # fmt: skip
"""The variables of the owner's environment that the agent also gets. It gets no others."""


def find_claude() -> Path:
    """Return the path of the bundled binary.

    Raises:
        NoClaude: the binary is not installed.
    """
    spec = importlib.util.find_spec("claude_agent_sdk")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = Path(places[0]) / "_bundled" / "claude" if places else None
    if path is None or not path.is_file():
        raise NoClaude(
            "the agent's binary is not installed: install the extra \"agent\" (pip install 'sessiond[agent]')"
        )
    return path


def claude_argv(
    binary: Path,
    *,
    model: str,
    conversation: str,
    resume: bool,
    web_fetch_check: bool = True,
    append_system_prompt: str | None = None,
) -> list[str]:
    """Return the command line of an agent process that begins `conversation`, or resumes it.

    `web_fetch_check` allows claude to ask its vendor about each host before it fetches from that host.
    """
    settings: dict[str, object] = {"crossSessionInbound": "refuse", "permissions": {"deny": list(OUTSIDE)}}
    if not web_fetch_check:
        settings["skipWebFetchPreflight"] = True
    argv = [
        str(binary), "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
        "--model", model, "--resume" if resume else "--session-id", conversation,
        "--permission-prompt-tool", "stdio", "--setting-sources", "", "--strict-mcp-config",
        "--settings", json.dumps(settings), "--disallowedTools", ",".join(sorted(NEVER)),
    ]  # fmt: skip
    if append_system_prompt:
        argv += ["--append-system-prompt", append_system_prompt, "--system-prompt-snapshot", "off"]
    return argv


def claude_env(
    environ: Mapping[str, str], *, home: Path, config: Path, background_tasks: bool = False
) -> dict[str, str]:
    """Return the agent's whole environment. `home` is the home of its tools, `config` is claude's own directory.

    `background_tasks` removes a protection. Only tests set it.
    """
    env = {name: environ[name] for name in PASSED if name in environ}
    env |= {
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(config),
        "IS_SANDBOX": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_SDK_READS_SESSION_STATE": "1",
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
        "CLAUDE_CODE_MAX_RETRIES": "2",
    }
    if not background_tasks:
        env |= {"CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1", "CLAUDE_CODE_DISABLE_CRON": "1"}
    return env
