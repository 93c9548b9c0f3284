"""How much the tests try: the quick form of `make test`, or with FULL=1 all of it, as the check-… targets run it."""

import os

FULL = os.environ.get("FULL") == "1"
