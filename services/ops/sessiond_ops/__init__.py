"""What an operator starts: `make up` on one machine, and `sessionctl`. Imports every service; none imports it."""
