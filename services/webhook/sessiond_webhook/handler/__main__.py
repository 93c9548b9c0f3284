"""`python -m sessiond_webhook.handler`: take the jobs of the handler until SIGTERM."""

import sys

from sessiond_webhook.handler.handler import main

if __name__ == "__main__":
    sys.exit(main())
