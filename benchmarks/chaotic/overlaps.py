"""Which faults had to be overcome while another one was under way. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.chaotic.injecting import Injected


def alone(injected: Sequence[Injected]) -> list[Injected]:
    """Faults from whose coming until whose recovery nothing else was broken that the recovery goes through.

    That is Redis, a scheduler (the standby, too), or the same target. Other workers and clients hinder nobody.
    """
    return [one for one in injected if not any(_hinders(other, one) for other in injected if other is not one)]


def _hinders(other: Injected, one: Injected) -> bool:
    kind = other.fault.kind
    of_all = kind.startswith("Redis") or "scheduler" in kind
    at_once = other.struck < one.recovered_at and one.struck < other.over
    return at_once and (of_all or other.target == one.target)
