"""What the project's processes have in common: logging, and rq as the job queues that wake them."""
