"""How much the tests try: the quick form of `make test`, or with FULL=1 all of it, as the check-… targets run it.

DEEP=1 on top of it takes minutes more than these may: `DEEP=1 make check-lock`.
"""

import os

FULL = os.environ.get("FULL") == "1"
DEEP = FULL and os.environ.get("DEEP") == "1"
