"""Memory of a process tree, read from /proc."""

import os
from pathlib import Path


def tree_bytes(pid: int) -> int:
    """Return the resident bytes of the process and its descendants. A process that is gone counts as 0."""
    try:
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = [
            int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()
        ]
    except (OSError, IndexError, ValueError):
        return 0
    return size + sum(map(tree_bytes, children))
