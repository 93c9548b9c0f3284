"""What all services share: settings, logs, metrics, job queues, times, files, leases."""

VERSION = "0.1.0"
"""The version of this project, as the metrics report it."""
