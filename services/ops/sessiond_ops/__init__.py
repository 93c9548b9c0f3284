"""What an operator starts: `make up` on one machine, and `sessionctl`. Knows every service; none knows it."""
