"""What the project's processes have in common: logging, and rq as the job queues that wake them."""

VERSION = "0.1.0"
"""This project's, as metrics tell it."""
