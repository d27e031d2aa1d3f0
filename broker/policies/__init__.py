"""Placement policies, one file each, behind the protocol in ``base``. Pure."""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import UsageError
from broker.policies.base import Policy
from broker.policies.capacity import Capacity
from broker.policies.least_outstanding import LeastOutstanding
from broker.policies.power_of_two import PowerOfTwo
from broker.policies.round_robin import RoundRobin
from broker.policies.throughput import Throughput

POLICIES: dict[str, Callable[[], Policy]] = {
    policy.name: policy for policy in (Throughput, RoundRobin, LeastOutstanding, PowerOfTwo, Capacity)
}


def make_policy(name: str) -> Policy:
    """A fresh policy of that name.

    Raises:
        UsageError: there is none; lists the ones there are.
    """
    try:
        return POLICIES[name]()
    except KeyError:
        raise UsageError(f"no placement policy {name!r}; there are {', '.join(sorted(POLICIES))}") from None
