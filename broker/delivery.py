"""What becomes of an attempt that failed: whether the failure may pass, and when the job is tried again. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.jobs import REQUEST_TIMEOUT

if TYPE_CHECKING:
    import random

#: HTTP statuses that say nothing against the request itself: the same one may get an answer another time, elsewhere.
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
#: No job waits longer than this before it is tried again (seconds).
LONGEST_DELAY_S = 60.0


def may_pass(status_code: int, error_code: str = "") -> bool:
    """Whether the same request may succeed in another attempt. What an engine refuses (400, 404, 422) never will.

    Args:
        status_code: HTTP status of the answer, 0 where there is none.
        error_code: why there is none.
    """
    return error_code == REQUEST_TIMEOUT if error_code else status_code in _MAY_PASS


def delay_s(attempt: int, rng: random.Random, first_s: float, longest_s: float = LONGEST_DELAY_S) -> float:
    """Seconds to wait after attempt number ``attempt`` (1 for the first) failed, at most ``longest_s``.

    Doubles with each attempt. Half of it is left to chance, so that jobs that failed together do not come back together
    ("equal jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    longest = min(first_s * 2.0 ** min(max(attempt, 1) - 1, 30), longest_s)
    return longest / 2 + rng.random() * longest / 2


def retry_s(status_code: int, error_code: str, attempt: int, rng: random.Random, first_s: float) -> float:
    """Seconds after which the job is tried again; 0 where it is not."""
    return delay_s(attempt, rng, first_s) if may_pass(status_code, error_code) else 0.0
