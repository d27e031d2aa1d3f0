"""The queue: what a job is, where it goes, what is stored."""
