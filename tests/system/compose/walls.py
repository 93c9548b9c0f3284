"""What the agent's own tool finds when it tries to get out: nothing."""

import json

from stack import Stack, say

SESSION = "octo/walls"
TURN = """
import os, sys
from sessiond_common.env import load
from sessiond.client import connect
client = connect(key=load(lambda env: env.secret("SESSIOND_KEY", "key"), os.environ))
with client.lease("octo/walls", kind="worker", key="walls") as lease:
    print(lease.turn(sys.argv[1]).result().outcome)
"""
KNOCKS = """
import socket
for host, port, text in (("redis", 6379, "KEYS *"), ("sessiond", 8420, "GET /v1/sessions HTTP/1.0\\r\\n")):
    with socket.create_connection((host, port), 3) as door:
        door.sendall(f"{text}\\r\\n".encode())
        print(host, door.recv(200).decode().splitlines()[0])
"""
WALLS = (
    "id -u; id -G; "
    "for f in /proc/[0-9]*/environ; do [ -O $f ] || { cat $f >/dev/null 2>&1 && echo LEAK $f; }; done; "
    "cat /keys/sessiond/keys 2>/dev/null && echo LEAK keys; cat /keys/sessiond/redis-url 2>/dev/null && echo LEAK url; "
    "ls /keys/sessiond 2>/dev/null && echo LEAK dir; "
    f"python -c 'exec(bytes.fromhex(\"{KNOCKS.encode().hex()}\").decode())'; "
    "env | grep -iE 'github|redis|webhook|SESSIOND_K' && echo LEAK env; "
    "kill -9 1 2>/dev/null && echo LEAK kill; touch /var/lib/sessiond/x 2>/dev/null && echo LEAK state; "
    "grep -E 'Cap(Eff|Prm|Amb)|NoNewPrivs' /proc/self/status; echo walls done"
)


def stand(stack: Stack) -> None:
    command = json.dumps({"command": f"{{ {WALLS}; }} > walls.txt 2>&1"})
    told = stack.python("worker", TURN, f"#tool Bash {command}")
    seen = stack.compose("exec", "-T", "sessiond", "cat", "/var/lib/sessiond/work/octo/walls/walls.txt")
    for line in seen.splitlines():
        say(f"  the agent's tool: {line}")
    assert "completed" in told and "walls done" in seen and "LEAK" not in seen, told
    assert seen.splitlines()[0:2] == ["10003", "10003"] and "NOAUTH" in seen and " 401 " in seen
    published(stack)


def published(stack: Stack) -> None:
    """Only the proxy and Grafana have a port outside, on loopback."""
    services = json.loads(stack.compose("-f", "docker-compose.yml", "config", "--format", "json"))["services"]
    ports = {name: [port["host_ip"] for port in one["ports"]] for name, one in services.items() if one.get("ports")}
    assert ports == {"proxy": ["127.0.0.1"], "grafana": ["127.0.0.1"]}, ports
