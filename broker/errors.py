"""Every error a person may meet, translated once at the edge where it arises.

A message is one line that says what is wrong and what to do. ``exit_code`` is what the command line exits with.
"""

from __future__ import annotations


class TokenyardError(Exception):
    """Base of all errors this project raises on purpose."""

    exit_code = 1


class UsageError(TokenyardError):
    """The call itself is wrong: an option, a path, a name."""

    exit_code = 2


class InputFileError(TokenyardError):
    """An input file cannot be read, or holds nothing that can run."""

    exit_code = 2


class RedisUnavailableError(TokenyardError):
    """Redis cannot be reached, or went away."""

    exit_code = 4


class RedisRefusedError(TokenyardError):
    """Redis answered and refused: a password, a permission, no memory."""

    exit_code = 4


class QueueFullError(TokenyardError):
    """A pool's backlog is as long as it may be: ``TOKENYARD_MAX_BACKLOG_JOBS``, ``TOKENYARD_MAX_BACKLOG_BYTES``."""

    exit_code = 5


class NotDurableError(TokenyardError):
    """The server did not say that jobs are on disk, or it lost some of them while they were submitted."""

    exit_code = 4


class UnknownModelError(TokenyardError):
    """No pool serves the model that a request names."""


class UnknownBatchError(TokenyardError):
    """No batch of that id is stored (it never was, or its time to live is over)."""


class WorkerGoneError(TokenyardError):
    """This worker was declared dead, or another process took over its name: what it held belongs to others."""


class LeaseLostError(TokenyardError):
    """Another scheduler holds the pool's lease now."""
