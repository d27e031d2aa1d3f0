"""A planner as a process: the search over an inventory, measuring on this host, and arq around them."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.connection import RedisClient
from broker.errors import TokenyardError, UsageError
from broker.settings import Settings
from broker.worker_options import check_options, with_model
from planner.planning import Planning
from planner.replanning import LookTerms, Replanner
from planner.tasks import Measure, PlannerProcess, PlannerTasks
from tokenyard.child_process import ChildProcess
from tokenyard.inventory_planning import InventoryChoice, planning_for

#: No host's name is longer.
_HOST_CHARS = 253


def planner_process(
    redis: RedisClient, settings: Settings, choice: InventoryChoice, *, every_s: float, look: LookTerms
) -> PlannerProcess:
    """The planner of a pool over an inventory.

    Raises:
        TokenyardError: the inventory cannot be read, or makes no sense.
    """
    return process_of(redis, settings, planning_for(choice), choice.model, every_s=every_s, look=look)


def process_of(
    redis: RedisClient, settings: Settings, planning: Planning, model: str, *, every_s: float, look: LookTerms
) -> PlannerProcess:
    """The planner of a pool with this search."""
    assert settings.redis_url is not None, "redis is a connection to it"
    replanner = Replanner(redis, settings.pool, planning, look)
    tasks = PlannerTasks(replanner, measure_here(settings, model))
    return PlannerProcess(settings.redis_url.get_secret_value(), settings.pool, tasks, every_s)


def measure_here(settings: Settings, model: str) -> Measure:
    """Measures engines of this host, each in a process of its own; the pool keeps the record."""
    here = socket.gethostname()

    async def measure(options: Sequence[str], host: str) -> str:
        words = [str(word) for word in options]
        check_options(words, [model])  # anyone can write to Redis, and so ask
        if host not in ("", here):
            there = shlex.join(["tokenyard", "profile", *with_model(words, [model]), "--pool", settings.pool])
            raise UsageError(
                f"this planner is on {here}, and an engine is measured where its device is: run `{there}` on "
                f"{str(host)[:_HOST_CHARS]!r}, while no worker uses the device; the planner will find the profile"
            )
        assert settings.redis_url is not None, "it is where we were asked"
        environment = {
            "TOKENYARD_REDIS_URL": settings.redis_url.get_secret_value(),
            "TOKENYARD_POOL": settings.pool,
            "NO_COLOR": "1",
            "TYPER_USE_RICH": "0",
        }
        with TemporaryDirectory(prefix="tokenyard-profile-") as folder:
            arguments = ["profile", *with_model(words, [model])]
            child = ChildProcess("profile", arguments, log_dir=Path(folder), environment=environment)
            await child.start()
            try:
                code = await child.wait()
            finally:
                await child.stop()
            said = child.how_it_ended().partition(" (log: ")[0]
        if code:
            raise TokenyardError(f"cannot measure {' '.join(words)} on {here}: {said}")
        return f"measured {' '.join(words)} on {here}: {said}"

    return measure
