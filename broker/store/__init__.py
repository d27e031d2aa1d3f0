"""The only package that talks to Redis: one module for each role (client, scheduler, worker, monitor)."""
