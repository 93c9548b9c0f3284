"""A program that forks without end: no look at processes is sure to see it."""

CHAIN = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.setsid()
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
os.write(1, b"forks\\n")
ends = time.monotonic() + 30
while time.monotonic() < ends:
    if os.fork():
        os._exit(0)
"""
"""Holds a lock for as long as one of it lives: no look at processes is sure to see it. Ends by itself in the end."""
