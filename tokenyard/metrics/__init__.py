"""Prometheus metrics: of the queue as Redis has it, and of each process."""
