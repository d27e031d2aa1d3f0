"""The parts of ``benchmarks.kill``."""
