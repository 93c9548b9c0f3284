"""Whom the agent runs as, when that is somebody else than the service."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class User:
    """An account by its numbers."""

    uid: int
    gid: int


@contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """What is in the block is done with this user's rights; None: with our own.

    A service that may change users (CAP_SETUID, CAP_SETGID) need not be one that reads everybody's files
    (CAP_DAC_OVERRIDE, CAP_SYS_PTRACE): it looks at what is the agent's as the agent would, and so meets no more than
    the agent could. The change is the whole process's: nothing in the block may wait or switch greenlets.
    """
    if user is None:
        yield
        return
    uid, gid = os.geteuid(), os.getegid()
    os.setegid(user.gid)
    try:
        os.seteuid(user.uid)
        try:
            yield
        finally:
            os.seteuid(uid)
    finally:
        os.setegid(gid)
