"""Run a stand-in in a container: on every address, under the name by which the services reach it."""

import sys
from http.server import ThreadingHTTPServer

import github
import model

PORT = 9000


def main(name: str) -> None:
    handler = {"model": model.Handler, "github": github.Handler}[name]
    if handler is github.Handler:
        github.Handler.world, github.Handler.base = github.World(), f"http://github:{PORT}"
    else:
        model.Handler.model = model.Model()
    server = ThreadingHTTPServer(("0.0.0.0", PORT), handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
