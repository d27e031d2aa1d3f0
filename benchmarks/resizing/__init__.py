"""The parts of ``benchmarks.resize``."""
