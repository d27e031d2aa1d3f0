"""The most that a pool's devices can do of what it is asked lately, and how near they come. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from broker.heartbeat import Heartbeat
from broker.recent_mix import RecentMix
from planner.cluster_plan import throughput
from tokenyard.known_devices import known_device


def bound_tokens_per_s(mix: RecentMix, beats: Iterable[Heartbeat | None]) -> float | None:
    """Tokens a second that no scheduler passes, those that a prefix cache spares not counted (``broker.fluid``).

    Args:
        mix: lengths of the jobs.
        beats: the workers' last heartbeats; those that take jobs count.

    Returns:
        None where nothing has ended, no worker is ready, or one of them has no profile.
    """
    ready = [beat for beat in beats if beat is not None and beat.state == "ready"]
    kinds = Counter(known_device("", beat).kind for beat in ready)
    counted = [replace(kind, count=count) for kind, count in kinds.items() if kind is not None]
    if not mix.jobs or not counted or None in kinds:
        return None
    return throughput(mix.computed_classes(), counted).tokens_per_s or None


def batch_bound(mix: RecentMix, beats: Iterable[Heartbeat | None]) -> float | None:
    """The same with all tokens of the jobs counted, as results count them."""
    bound = bound_tokens_per_s(mix, beats)
    return bound * mix.tokens / mix.computed_tokens if bound and mix.computed_tokens else None


def share_of(tokens_per_s: float, bound: float | None) -> float | None:
    """A rate as a share of the bound; None where there is none."""
    return tokens_per_s / bound if bound else None
