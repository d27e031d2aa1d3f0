"""Parts of the planner's benchmarks."""
