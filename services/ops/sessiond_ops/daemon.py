"""The console script `sessiond`: runs `sessiond.main`, or prints one line if the extra `server` is missing."""

import sys

from sessiond_common.extras import ExtraMissing, import_with_extra


def main() -> int:
    """Run the daemon. Returns its exit status, or 2 without the extra `server`."""
    try:
        daemon = import_with_extra("sessiond.main", "server")
    except ExtraMissing as error:
        print(f"sessiond: {error}", file=sys.stderr)
        return 2
    status: int = daemon.main()
    return status
