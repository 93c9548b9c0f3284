"""How many cases the tests run: the quick form for `make test`, or all with FULL=1, as the check-… targets set it.

DEEP=1 in addition to FULL=1 adds cases that take minutes: `DEEP=1 make check-lock`.
"""

import os

FULL = os.environ.get("FULL") == "1"
DEEP = FULL and os.environ.get("DEEP") == "1"
