"""How much memory a tree of processes has, from /proc; where there is none, nothing."""

import os
from pathlib import Path


def tree_bytes(pid: int) -> int:
    """Resident bytes of the process and all below it; those that are gone meanwhile count nothing."""
    try:
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = [
            int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()
        ]
    except (OSError, IndexError, ValueError):
        return 0
    return size + sum(map(tree_bytes, children))
