"""A worker as a process: connection, engine, membership, signals."""

from __future__ import annotations

import logging
from dataclasses import replace

from broker.concurrency import on_stop_signals
from broker.connection import connected
from broker.settings import Settings
from tokenyard.engine_choice import EngineChoice, build_engine
from tokenyard.engine_profiles import profile_source
from workers.membership import Membership
from workers.worker import Worker

log = logging.getLogger(__name__)


async def run_worker(redis_url: str, settings: Settings, choice: EngineChoice, name: str) -> None:
    """Run one worker until it is told to stop.

    Raises:
        TokenyardError: no Redis, no engine, no such model; one line says what to do.
    """
    async with connected(redis_url) as client:
        engine = build_engine(replace(choice, poll_s=settings.heartbeat_interval_s), log.info)
        membership = Membership(
            client,
            settings,
            name=name,
            engine_kind=choice.kind.value,
            models=choice.names,
            find_profile=profile_source(client, settings.pool, choice),
        )
        worker = Worker(engine, membership)
        on_stop_signals(worker.stop)
        log.info("worker %s joins pool %s for %s", name, settings.pool, choice.names[0])
        await worker.run()
