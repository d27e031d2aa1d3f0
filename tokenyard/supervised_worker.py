"""One worker process of a supervisor: from its start until it is gone."""

from __future__ import annotations

import asyncio

from broker.heartbeat import Heartbeat
from broker.pool_plan import PlannedWorker
from tokenyard.supervision import HostProcess, Phase, process_name
from tokenyard.worker_site import Child

#: One that has nothing to finish is killed this long after it was asked twice (seconds).
_SHORT_STOP_S = 1.0


class SupervisedWorker:
    """A ``tokenyard worker`` as a plan wants it. Times are seconds on the event loop's clock."""

    def __init__(self, planned: PlannedWorker, child: Child) -> None:
        self.planned = planned
        self.name = process_name(planned)
        self.started = 0.0
        self.ready: float | None = None
        self.draining = False
        self._child = child
        self._ended: asyncio.Task[int] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def start(self, changed: asyncio.Event) -> None:
        """Start it; ``changed`` is set when it has ended."""
        self.started = asyncio.get_running_loop().time()
        await self._child.start()
        self._ended = asyncio.ensure_future(self._child.wait())
        self._ended.add_done_callback(lambda _task: changed.set())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def log_at(self) -> str:
        """Where its log is."""
        return self._child.log_at

    @property
    def waits_for_room(self) -> bool:
        """Whether it will start once others have gone."""
        return self._child.waits_for_room

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it lives."""
        return self._ended.result() if self._ended is not None and self._ended.done() else None

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        if self.draining:
            return "draining"
        return "starting" if self.ready is None else "ready"

    def account(self) -> HostProcess:
        """What a decision needs to know of it."""
        return HostProcess(self.name, self.planned, self.phase)

    def saw(self, beat: Heartbeat | None) -> bool:
        """Learn from its last heartbeat; True where it has just become ready."""
        if self.ready is not None or beat is None or beat.pid != self.pid or beat.state != "ready":
            return False
        self.ready = asyncio.get_running_loop().time()
        return True

    def drain(self) -> None:
        """Ask it to finish what runs and go; one that never served is stopped."""
        self.draining = True
        if self.ready is None:
            self.stop()
        else:
            self._child.terminate()

    def stop(self) -> None:
        """Make it end soon, whatever it runs."""
        self.draining = True
        if self._stopping is None:
            patience = () if self.ready is not None else (_SHORT_STOP_S,)
            self._stopping = asyncio.ensure_future(self._child.stop(*patience))

    async def wait(self) -> None:
        """Wait until it is gone."""
        if self._ended is not None:
            await asyncio.shield(self._ended)

    def how_it_ended(self) -> str:
        """Why, in its own words, and where it says more."""
        return self._child.how_it_ended()
