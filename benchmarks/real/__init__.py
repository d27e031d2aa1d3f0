"""The parts of ``benchmarks.real_cluster``."""
