"""The command line and the one-machine cluster: composes queue and workers, holds no policy."""

__version__ = "0.1.0"
