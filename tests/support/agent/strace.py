"""Runs a service under strace and parses the trace: which thread wrote what to which file, in order."""

import codecs
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SHOWN: Final = 70_000
"""Bytes of a call's data that strace shows. No call writes more to a pipe, whose size is 64 KiB."""
WRITES: Final = (
    "write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg,sendfile,splice,tee,vmsplice,io_uring_enter"
)
READS: Final = "recvfrom"

_LINE = re.compile(r"(\d+) +(?:(\w+)\(|<\.\.\. (\w+) resumed>)(.*)$", re.DOTALL)
_TARGET = re.compile(r"(\d+)<(.*?)>(?=, |\))")
_END = re.compile(r"(?:, (\d+))?\) += (-?\d+)[^=]*$")
UNFINISHED: Final = " <unfinished ...>"


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that has returned. Calls are ordered by the time of their return."""

    at: int
    """Its position in the trace."""
    tid: int
    name: str
    fd: int
    target: str
    """The file as strace names it: `pipe:[123]`, `TCP:[127.0.0.1:1->127.0.0.1:2]`."""
    data: bytes
    """The data, at most `SHOWN` bytes."""
    asked: int
    """For `write`, the number of bytes requested."""
    done: int
    """The number of bytes moved, negative for an error."""


def why_not() -> str | None:
    """Return why tracing is impossible here, or None if it is possible."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-qq", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"], capture_output=True, text=True
    )
    return f"strace: {tried.stderr.strip()}" if tried.returncode else None


class Strace:
    """The trace of a process that is started `under` strace, of its threads, and of their children."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.under: Final = (
            "strace", "-D", "-qq", "-f", "--seccomp-bpf", "-yy", "-s", str(SHOWN), "-e", f"trace={WRITES},{READS}",
            "-e", "signal=none", "-o", str(file),
        )  # fmt: skip
        """The prefix of the command. The started process is the command itself; strace runs beside it."""

    def follows(self, pid: int) -> int:
        """Return the pid of the strace that traces this process."""
        found = re.search(r"^TracerPid:\s+(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert found is not None and found[1] != "0"
        return int(found[1])

    def calls(self) -> Iterator[Call]:
        """Yield the traced calls. The trace is complete once strace has ended, after the last traced process."""
        begun: dict[int, str] = {}
        with self._file.open(encoding="latin-1", newline="\n") as lines:
            for at, line in enumerate(lines):
                found = _LINE.match(line)
                if found is None:
                    continue
                tid, text = int(found[1]), found[4].rstrip("\n")
                if found[3] is not None:
                    name, _, before = begun.pop(tid, "").partition("(")
                    if name != found[3]:  # the beginning of this call is not in the trace
                        continue
                    text = before + text
                else:
                    name = found[2]
                if text.endswith(UNFINISHED):
                    begun[tid] = f"{name}({text.removesuffix(UNFINISHED)}"
                elif name and (call := _call(at, tid, name, text)) is not None:
                    yield call


def _call(at: int, tid: int, name: str, text: str) -> Call | None:
    target, end = _TARGET.match(text), _END.search(text[-200:])
    if target is None or end is None:
        return None
    moved = int(end[2])
    asked = int(end[1]) if end[1] and name == "write" else moved
    return Call(at, tid, name, int(target[1]), target[2], _bytes(text, max(0, moved)), asked, moved)


def _bytes(text: str, size: int) -> bytes:
    """Return the first `size` bytes between the first and the last quote. A byte takes at most four characters."""
    begin, end = text.find('"') + 1, text.rfind('"')
    shown = text[begin : min(end, begin + 4 * size)]
    if (len(shown) - len(shown.rstrip("\\"))) % 2:
        shown = shown[:-1]
    return codecs.escape_decode(shown.encode("latin-1"))[0][:size]
