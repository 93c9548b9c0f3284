"""Shell commands that leave stray processes behind in many ways, and a search for these processes."""

import os
import random
import signal
from pathlib import Path

from support.servers import eventually

WAYS = {
    "foreground": "{0}",
    "background": "{0} &",
    "setsid": "setsid {0} &",
    "nohup": "nohup sh -c '{0}; :' >/dev/null 2>&1 &",
    "daemon": "(setsid sh -c '{0} & exit' &);",
    "deaf": """sh -c 'trap "" TERM HUP INT; {0}; :' &""",
    "no files": "setsid sh -c 'exec 0<&- 1>&- 2>&-; exec {0}' &",
    "bare": "env -i setsid {0} &",
}
"""Shell commands by name; `{0}` is the stray process.

`daemon` forks twice, `deaf` ignores SIGTERM, `no files` closes all its files, and `bare` has no environment.
"""


class Strays:
    """The stray processes of one tool.

    Each is `sleep 4000.NUMBER`. The number identifies the way, and is unique on this machine.
    """

    def __init__(self, *ways: str) -> None:
        self.ways = ways or tuple(WAYS)
        number = random.randrange(10**11, 10**12)
        self._names = {f"{4000 + n}.{number}": way for n, way in enumerate(self.ways)}
        last = sorted(self._names.items(), key=lambda item: item[1] == "foreground")
        self.command = " ".join(WAYS[way].format(f"sleep {name}") for name, way in last)
        """The shell command that starts them. It does not return if one of them runs in the foreground."""

    def found(self) -> dict[int, str]:
        """Return the running processes of this tool, wherever they are in the process table: pid to way."""
        return {pid: way for pid in _pids() if (way := self._way(pid)) is not None}

    def _way(self, pid: int) -> str | None:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return None
        if words[0] not in ("sleep", "/bin/sleep", "/usr/bin/sleep"):
            return None
        return self._names.get(words[1])

    def wait(self) -> None:
        """Wait until all of them run."""
        eventually(lambda: set(self.found().values()) == set(self.ways), 30, lambda: f"strays: {self.found()}")

    def end(self) -> None:
        """Kill the remaining processes. Needed by tests that show that some remain."""
        for pid in self.found():
            os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]
