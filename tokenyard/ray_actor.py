"""What runs inside a Ray actor: one ``tokenyard worker``, as a child of the actor's process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenyard.child_process import ChildProcess
from tokenyard.device_claims import claim, release
from tokenyard.ray_terms import RayResources, with_cores


class WorkerHost:
    """Lives as long as its worker; the worker does not outlive it, however it dies."""

    def __init__(
        self, name: str, options: Sequence[str], environment: Mapping[str, str], needed: RayResources, *, cores: bool
    ) -> None:
        """Say what to start.

        Args:
            name: the worker's.
            options: its options.
            environment: what it has beside ours.
            needed: what Ray gives it.
            cores: whether it keeps to cores of its own.
        """
        self._name = name
        self._options = list(options)
        self._environment = dict(environment)
        self._needed = needed
        self._cores = cores
        self._child: ChildProcess | None = None

    async def start(self) -> tuple[int, str]:
        """Start it once its devices are free; returns its process id and where its log is."""
        folder = _state_folder()
        held = await self._claim(folder)
        try:
            options = with_cores(self._options, held) if self._cores else self._options
            self._child = ChildProcess(
                self._name,
                ["worker", "--name", self._name, *options],
                log_dir=folder / "logs",
                environment=self._environment,
                keep_open=list(held.values()),
            )
            await self._child.start()
        finally:
            release(held)  # the child has them
        return self._child.pid, self._child.log_at

    async def wait(self) -> tuple[int, str]:
        """Wait for its end: its exit code, and why."""
        assert self._child is not None, "start() comes first"
        return await self._child.wait(), self._child.how_it_ended()

    async def terminate(self) -> None:
        """Ask it to end: it drains."""
        if self._child is not None:
            self._child.terminate()

    async def stop(self, *timeout_s: float) -> None:
        """See ``ChildProcess.stop``."""
        if self._child is not None:
            await self._child.stop(*timeout_s)

    async def _claim(self, folder: Path) -> dict[int, int]:
        """Ray counts cores and does not say which; and a worker that is being killed may still hold a GPU it gives."""
        if self._cores:
            own = sorted(os.sched_getaffinity(0))
            return await claim(folder, "core", own, min(self._needed.cpus, len(own)))
        gpus = [int(i) for i in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if i.isdigit()]
        wanted = gpus if self._needed.gpus else []
        return await claim(folder, "gpu", wanted, len(wanted))


def _state_folder() -> Path:
    """This node's: what TOKENYARD_STATE_DIR says there, else one of this user's below the folder of temporary files."""
    own = Path(tempfile.gettempdir()) / f"tokenyard-{os.getuid()}"
    folder = Path(os.environ.get("TOKENYARD_STATE_DIR") or own).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else: set TOKENYARD_STATE_DIR for Ray on this node")
    (folder / "logs").mkdir(exist_ok=True)
    return folder
