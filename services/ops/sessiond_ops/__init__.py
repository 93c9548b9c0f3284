"""The programs of an operator: `make up` on one machine, and `sessionctl`. Imports every service; none imports it."""
