"""A program that forks endlessly, so that a single scan of the process table may miss it."""

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
"""The program. It holds a file lock while any of its processes runs, and ends after 30 s."""
