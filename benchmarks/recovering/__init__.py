"""What becomes of jobs when a worker or Redis dies under them, in this queue and in others."""
