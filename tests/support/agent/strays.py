"""Tools that leave processes behind in every way that a shell has, and how to find those again."""

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
"""By name, what a shell is told, with `{0}` for the process itself. `daemon` forks twice, `deaf` ignores SIGTERM,
`no files` closes all it has, `bare` has no environment."""


class Strays:
    """One tool's processes: `sleep 4000.NUMBER`, a number for each way that nobody else on the machine has."""

    def __init__(self, *ways: str) -> None:
        self.ways = ways or tuple(WAYS)
        number = random.randrange(10**11, 10**12)
        self._names = {f"{4000 + n}.{number}": way for n, way in enumerate(self.ways)}
        last = sorted(self._names.items(), key=lambda item: item[1] == "foreground")
        self.command = " ".join(WAYS[way].format(f"sleep {name}") for name, way in last)
        """For a shell, one line. With a foreground process it does not come back."""

    def found(self) -> dict[int, str]:
        """What of it lives, wherever it is in the process table: pid to way."""
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
        """Until all of them live."""
        eventually(lambda: set(self.found().values()) == set(self.ways), 30, lambda: f"strays: {self.found()}")

    def end(self) -> None:
        """Ends what is left, for a test that shows what is."""
        for pid in self.found():
            os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]
