"""Stop a child when its parent dies, by the kernel's parent-death signal."""

import ctypes
import signal
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends. It has an effect on Linux only.

    Call it in the child before its program starts (`preexec_fn`).
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
