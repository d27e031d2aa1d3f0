"""A cluster of processes that is broken on purpose, and what must be true of it all the same."""
