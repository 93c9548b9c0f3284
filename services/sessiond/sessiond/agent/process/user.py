"""The account that the agent runs as, if it is not the service's own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class User:
    """An account, by its numeric ids."""

    uid: int
    gid: int


@contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """Run the block with this user's rights, or with our own if `user` is None.

    A service that may change users (CAP_SETUID, CAP_SETGID) then needs no right to read all files
    (CAP_DAC_OVERRIDE, CAP_SYS_PTRACE): it reads the agent's files with the agent's own rights. The change
    applies to the whole process, so the block must not wait or switch greenlets.
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
