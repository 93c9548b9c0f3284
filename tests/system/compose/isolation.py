"""Check that the agent's tools cannot leave their container, read secrets, or change what is not the agent's."""

import json

from stack import Stack, say

SESSION = "octo/isolation"
RUN_TURN = """
import os, sys
from sessiond_common.env import load
from sessiond.client import connect
client = connect(key=load(lambda env: env.secret("SESSIOND_KEY", "key"), os.environ))
with client.lease("octo/isolation", kind="worker", key="isolation") as lease:
    print(lease.turn(sys.argv[1]).result().outcome)
"""
CONNECT_WITHOUT_CREDENTIALS = """
import socket
for host, port, text in (("redis", 6379, "KEYS *"), ("sessiond", 8420, "GET /v1/sessions HTTP/1.0\\r\\n")):
    with socket.create_connection((host, port), 3) as connection:
        connection.sendall(f"{text}\\r\\n".encode())
        print(host, connection.recv(200).decode().splitlines()[0])
"""
ATTEMPTS = (
    "id -u; id -G; "
    "for f in /proc/[0-9]*/environ; do [ -O $f ] || { cat $f >/dev/null 2>&1 && echo LEAK $f; }; done; "
    "cat /keys/sessiond/keys 2>/dev/null && echo LEAK keys; cat /keys/sessiond/redis-url 2>/dev/null && echo LEAK url; "
    "ls /keys/sessiond 2>/dev/null && echo LEAK dir; "
    f"python -c 'exec(bytes.fromhex(\"{CONNECT_WITHOUT_CREDENTIALS.encode().hex()}\").decode())'; "
    "env | grep -iE 'github|redis|webhook|SESSIOND_K' && echo LEAK env; "
    "kill -9 1 2>/dev/null && echo LEAK kill; touch /var/lib/sessiond/x 2>/dev/null && echo LEAK state; "
    "grep -E 'Cap(Eff|Prm|Amb)|NoNewPrivs' /proc/self/status; echo all attempts done"
)
"""Shell commands that the agent's tool runs. A forbidden command that succeeds prints LEAK."""


def check_isolation(stack: Stack) -> None:
    command = json.dumps({"command": f"{{ {ATTEMPTS}; }} > attempts.txt 2>&1"})
    outcome = stack.python("worker", RUN_TURN, f"#tool Bash {command}")
    output = stack.compose("exec", "-T", "sessiond", "cat", f"/var/lib/sessiond/work/{SESSION}/attempts.txt")
    for line in output.splitlines():
        say(f"  the agent's tool: {line}")
    assert "completed" in outcome and "all attempts done" in output and "LEAK" not in output, outcome
    assert output.splitlines()[0:2] == ["10003", "10003"] and "NOAUTH" in output and " 401 " in output
    check_published_ports(stack)


def check_published_ports(stack: Stack) -> None:
    """Check that only the proxy and Grafana publish a port, and only on loopback."""
    services = json.loads(stack.compose("-f", "docker-compose.yml", "config", "--format", "json"))["services"]
    ports = {name: [port["host_ip"] for port in one["ports"]] for name, one in services.items() if one.get("ports")}
    assert ports == {"proxy": ["127.0.0.1"], "grafana": ["127.0.0.1"]}, ports
