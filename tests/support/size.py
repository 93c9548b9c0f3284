"""How many cases the tests run: a quick selection in `make test`, or all with FULL=1 (set by the check-… targets).

DEEP=1 together with FULL=1 adds cases that take minutes: `DEEP=1 make check-lock`.
"""

import os

FULL = os.environ.get("FULL") == "1"
DEEP = FULL and os.environ.get("DEEP") == "1"
