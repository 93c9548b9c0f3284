"""`python -m sessiond_common.jobs.healthcheck`: the container health check of a process that takes jobs."""

import os
import socket
import sys

import redis

from sessiond_common.env import Env


def main() -> int:
    """Return 0 if Redis knows an rq worker on this host, else 1."""
    connection = redis.Redis.from_url(
        Env(os.environ).redis_url(), socket_timeout=3, socket_connect_timeout=3, decode_responses=True
    )
    here = socket.gethostname()
    for key in connection.smembers("rq:workers"):
        if connection.hget(key, "hostname") == here:
            return 0
    print(f"Redis knows no rq worker on {here}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
