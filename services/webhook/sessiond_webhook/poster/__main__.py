"""`python -m sessiond_webhook.poster`: take the jobs of the poster until SIGTERM."""

import sys

from sessiond_webhook.poster.poster import main

if __name__ == "__main__":
    sys.exit(main())
