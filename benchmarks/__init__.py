"""Benchmarks. Each is run by ``python -m benchmarks.NAME``; ``--help`` says what it measures."""
