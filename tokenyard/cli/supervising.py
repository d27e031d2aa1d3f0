"""What the commands ``supervisor`` and ``ray`` share: options of scale, and life from start to drain."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer

from broker.concurrency import cancel_all, on_stop_signals, run_together
from broker.settings import Settings
from tokenyard.cli.runtime import fail
from tokenyard.supervisor import Supervisor

Models = Annotated[
    list[str], typer.Option("--model", help="Model that may run here (repeatable); the first where a plan names none.")
]
MinWorkers = Annotated[int, typer.Option(min=0, help="At least so many workers run.")]
MaxWorkers = Annotated[int, typer.Option(min=0, help="At most so many workers run.")]
DrainS = Annotated[float, typer.Option(min=1, help="Seconds in which what waits should be done.")]
CoolDownS = Annotated[float, typer.Option(min=0, help="A worker stops when fewer were enough for so many seconds.")]
T = TypeVar("T")


def check_bounds(min_workers: int, max_workers: int) -> None:
    """Exit with a line where the bounds make no sense."""
    if min_workers > max_workers:
        fail(f"--min-workers {min_workers} is more than --max-workers {max_workers}", 2)


class Stopping:
    """Ctrl-C or SIGTERM: the first means to drain, the second to hurry."""

    def __init__(self) -> None:
        """Listen from now on; needs a running event loop."""
        self.stop, self._hurry = asyncio.Event(), asyncio.Event()
        on_stop_signals(lambda _name: (self._hurry if self.stop.is_set() else self.stop).set())

    async def unless_stopped(self, main: Coroutine[Any, Any, T]) -> T | None:
        """What ``main`` returns; None where the stop comes first."""
        work, stopped = asyncio.ensure_future(main), asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            await cancel_all([work, stopped])

    async def run(self, supervisor: Supervisor) -> None:
        """Supervise until stopped; then let workers finish what they run or, told to hurry, hand it back."""
        try:
            await run_together(supervisor.run(), self.stop.wait())
        finally:
            drained = asyncio.ensure_future(supervisor.drain())
            hurried = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait([drained, hurried], return_when=asyncio.FIRST_COMPLETED)
            await cancel_all([hurried])
            supervisor.stop_now()
            await drained


def worker_environment(settings: Settings, url: str) -> dict[str, str]:
    """What a worker's environment has beside that of its parent."""
    return {
        "TOKENYARD_REDIS_URL": url,
        "TOKENYARD_POOL": settings.pool,
        "NO_COLOR": "1",
        "TYPER_USE_RICH": "0",  # what is wrong with an option on a line of its own, without a box around it
    }
