"""The processes of a cluster of real engines: they live on while one scheduler after another leads them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil

from benchmarks.cluster import BenchmarkError, Process, ProcessGroup, cpu_seconds
from benchmarks.waiting import until_true
from broker.client import Client, connect_client
from broker.heartbeat import Heartbeat
from tokenyard.demo_model import DEMO_MODEL_NAMES
from tokenyard.embedded_server import EmbeddedServer
from tokenyard.local_cluster import WorkerSpec, usable_cores

POOL = "real"
MODEL = DEMO_MODEL_NAMES[0]
_MODEL_WORDS = ("--engine", "vllm", "--model", "demo")
_START_TIMEOUT_S = 300.0
_LEASE_TIMEOUT_S = 30.0
_LOOK_S, _IMPORT_LOOK_S = 0.05, 0.5
#: A worker that takes less than this share of a core for so long is idle. A slow engine's step may take a minute.
_QUIET_SHARE, _QUIET_S, _STEP_TIMEOUT_S = 0.3, 1.0, 180.0


class RealCluster(ProcessGroup):
    """Server, client and workers of one pool; see ``real_cluster``."""

    def __init__(self, folder: Path, server: EmbeddedServer, client: Client) -> None:
        super().__init__(server, client, POOL)
        self._folder = folder

    async def profile(self, turns: Sequence[Sequence[WorkerSpec]], budget_s: float) -> list[dict[str, Path]]:
        """Measure engines. All are up before the first is measured; those of a turn are measured side by side.

        Args:
            turns: the workers whose engines are measured in each.
            budget_s: seconds for each turn.

        Returns:
            For each turn the file of each one's profile.

        Raises:
            BenchmarkError: one cannot be measured.
        """
        files = [{spec.name: self._folder / f"{turn}-{spec.name}.json" for spec in of} for turn, of in enumerate(turns)]
        engines = str(sum(len(specs) for specs in turns))
        children: list[Process] = []
        patience_s = _START_TIMEOUT_S + budget_s * len(turns)
        try:
            for turn, specs in enumerate(turns):
                for spec in specs:
                    words = ["profile", "--budget-s", str(budget_s), "--output", str(files[turn][spec.name])]
                    words += ["--side-by-side", engines, "--turn", str(turn + 1)]
                    child = self._process(f"profile-{turn}-{spec.name}", [*words, *_MODEL_WORDS, *spec.options], "")
                    await _until_fewer_import(children, len(usable_cores()))
                    children.append(child)
                    await child.start()
            async with asyncio.timeout(patience_s):
                for child, status in zip(children, await asyncio.gather(*(c.wait() for c in children)), strict=True):
                    if status != 0:
                        raise BenchmarkError(f"{child.name} failed: {child.how_it_ended()}")
        except TimeoutError:
            raise BenchmarkError(f"the engines were not measured within {patience_s:.0f} s") from None
        finally:
            await asyncio.gather(*(child.stop() for child in children))
        return files

    async def start_workers(self, specs: Sequence[WorkerSpec], profiles: Mapping[str, Path]) -> None:
        """Start workers, and wait until all are ready.

        Args:
            profiles: file of a worker's profile, where it has one.
        """
        for spec in specs:
            words = ["worker", "--pool", POOL, "--name", spec.name, *_MODEL_WORDS, *spec.options]
            if spec.name in profiles:
                words += ["--profile", str(profiles[spec.name])]
            child = self._process(spec.name, words, self.server.url)
            await child.start()
            self.workers.append(child)
        await self.until(self.are_ready, "the workers did not become ready", _START_TIMEOUT_S)

    async def heartbeats(self) -> dict[str, Heartbeat]:
        """The last heartbeat of each worker.

        Raises:
            BenchmarkError: one has none.
        """
        beats = await self.monitor.heartbeats()
        found = {worker.name: beats.get(worker.name) for worker in self.workers}
        for name, beat in found.items():
            if beat is None:
                raise BenchmarkError(f"worker {name} fell silent")
        return {name: beat for name, beat in found.items() if beat is not None}

    @asynccontextmanager
    async def alone(self, names: Collection[str]) -> AsyncGenerator[None]:
        """Pause the engines of all other workers, which have nothing to do: they look for work all the time.

        The workers themselves go on, and say that they live.
        """
        others = [worker for worker in self.workers if worker.name not in names]
        # Not in the midst of a step whose requests were dropped: an engine gives up a step that takes too long.
        await asyncio.gather(*map(_until_quiet, others))
        paused = [child for worker in others for child in _engine(worker)]
        try:
            for child in paused:
                child.suspend()
            yield
        finally:
            for child in paused:
                child.resume()

    @asynccontextmanager
    async def led_by(self, policy: str) -> AsyncGenerator[None]:
        """A scheduler with that policy, for the length of the block."""
        self.scheduler = self._process("scheduler", ["scheduler", "--pool", POOL, "--policy", policy], self.server.url)
        await self.scheduler.start()
        try:
            await self.until(self.is_led, "the scheduler did not take the lease", _LEASE_TIMEOUT_S)
            yield
        finally:
            await self.scheduler.stop()
            self.scheduler = None

    async def stop(self) -> None:
        """End the workers."""
        await asyncio.gather(*(worker.stop() for worker in self.workers))

    def _process(self, name: str, words: Sequence[str], redis_url: str) -> Process:
        environment = {
            "TOKENYARD_REDIS_URL": redis_url,
            "TOKENYARD_STATE_DIR": str(self._folder),
            "NO_COLOR": "1",
            "TYPER_USE_RICH": "0",
        }
        return Process(name, list(words), log_dir=self._folder, environment=environment)


async def _until_quiet(worker: Process) -> None:
    async def quiet() -> bool:
        before = cpu_seconds(worker.pid, and_children=True)
        await asyncio.sleep(_QUIET_S)
        return cpu_seconds(worker.pid, and_children=True) - before < _QUIET_SHARE * _QUIET_S

    await until_true(quiet, _STEP_TIMEOUT_S)


async def _until_fewer_import(started: Sequence[Process], most: int) -> None:
    """Wait until fewer than so many processes import vLLM: more than there are cores would only be in each other's way.

    One that is not kept to some cores suffers most: it shares its core, wherever it goes, and is up long after the
    others.
    """

    def fewer() -> bool:
        return sum(not child.ended and not _engine(child) for child in started) < most

    await until_true(fewer, _START_TIMEOUT_S, _IMPORT_LOOK_S)


def _engine(worker: Process) -> list[psutil.Process]:
    """The processes of a worker's engine; the shell beside them ends all where this process dies."""
    return [child for child in psutil.Process(worker.pid).children(recursive=True) if child.name() != "sh"]


@asynccontextmanager
async def real_cluster() -> AsyncGenerator[RealCluster]:
    """A server with a client and a pool for the demo's model; workers and schedulers are started by its methods."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenyard-bench-")))
        server = await stack.enter_async_context(EmbeddedServer(folder / "redis"))
        client = await stack.enter_async_context(connect_client(server.url))
        await client.registry.add_pool(POOL, DEMO_MODEL_NAMES)
        cluster = RealCluster(folder, server, client)
        stack.push_async_callback(cluster.stop)
        yield cluster
