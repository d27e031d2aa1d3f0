"""A scheduler as a process: placement for every pool, and its metrics."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence

from broker.connection import RedisClient
from broker.policies import make_policy
from broker.scheduler_host import SchedulerHost
from broker.settings import Settings
from tokenyard.garbage import collect_rarely
from tokenyard.metrics.process import metrics_served
from tokenyard.metrics.scheduling import SchedulerCollector


async def run_scheduler(redis: RedisClient, settings: Settings, pools: Sequence[str]) -> None:
    """Schedule these pools, all where none is named, for ever.

    Raises:
        UsageError: there is no such policy.
    """
    collect_rarely()
    make_policy(settings.policy)  # an unknown one is refused now, not when the first pool comes
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    host = SchedulerHost(redis, settings, owner=owner, pools=pools)
    with metrics_served(settings, SchedulerCollector(lambda: host.stats)):
        await host.run()
