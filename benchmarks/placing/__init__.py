"""The parts of ``benchmarks.placement``."""
