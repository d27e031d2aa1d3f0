"""``tokenyard ray`` on a real Ray cluster of three nodes: the plan is carried out, wherever Ray places it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_process import ROOT, environment
from cluster_fixtures import cluster_of, eventually, exactly_once, instant_engine
from supervised import Site, planned

from broker.pool_plan import PlannedWorker, PoolPlan
from tokenyard.ray_terms import on_ray
from tokenyard.supervision import process_name

pytest.importorskip("ray")
from ray.cluster_utils import Cluster as RayCluster  # pyright: ignore[reportMissingImports]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_PATIENCE_S = 60.0
_NODE = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@dataclass
class Nodes:
    """A Ray cluster: a head with one core and two more nodes with two each, or so Ray believes."""

    cluster: Any
    more: list[Any] = field(default_factory=list[Any])

    def add(self) -> None:
        self.more.append(self.cluster.add_node(**_NODE))

    def of(self, process: psutil.Process) -> Any:
        """The node, other than the head, on which a worker's process runs; None where it is none of these."""
        parents = {parent.pid for parent in process.parents()}
        return next((n for n in self.more if n.all_processes["raylet"][0].process.pid in parents), None)

    def remove(self, node: Any) -> None:
        """Kill all processes of a node."""
        self.more.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    patch = pytest.MonkeyPatch()
    patch.setenv("TOKENYARD_STATE_DIR", str(tmp_path_factory.mktemp("nodes")))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = RayCluster(initialize_head=True, head_node_args=_NODE | {"num_cpus": 1})
    nodes = Nodes(cluster)
    nodes.add()
    nodes.add()
    yield nodes
    cluster.shutdown()
    patch.undo()


@dataclass
class RaySite(Site):
    """The Ray cluster as the host of a pool."""

    nodes: Nodes = field(kw_only=True)

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        """Start ``tokenyard ray`` that runs the whole plan."""
        pool = self.cluster.settings.pool
        with (self.folder / "supervisor.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tokenyard", "ray", "--pool", pool, "--model", self.cluster.model),
                *("--address", self.nodes.cluster.address, "--room-s", "30", "--min-workers", "9", *words),
                cwd=ROOT,
                env=environment(self.cluster.url) | {"TOKENYARD_STATE_DIR": str(self.folder)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    def processes(self) -> list[psutil.Process]:
        """The worker processes of this pool."""
        pool, found = self.cluster.settings.pool, list[psutil.Process]()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if "worker" in process.cmdline()[:4] and process.environ().get("TOKENYARD_POOL") == pool:
                    found.append(process)
        return found

    async def serves(self, *workers: PlannedWorker, beside: tuple[str, ...] = ()) -> None:
        """Wait until exactly these run, and those beside them that nobody planned."""
        names = self.names(*workers)

        async def is_so() -> bool:
            return sorted(self.running()) == names and await self.ready() == {*names, *beside}

        try:
            await eventually(is_so, f"just {names} run", timeout=_PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.running()}; {self.said[-3000:]}") from None

    def names(self, *workers: PlannedWorker) -> list[str]:
        plan = on_ray(PoolPlan(1, 0.0, workers))
        return sorted(process_name(worker) for worker in plan.workers)

    def clear(self) -> None:
        super().clear()
        for process in self.started:
            if process.returncode is None:
                process.kill()


@pytest.fixture
async def site(redis_url: str, pool: str, tmp_path: Path, nodes: Nodes) -> AsyncGenerator[RaySite]:
    async with cluster_of(redis_url, pool) as cluster:
        site = RaySite(cluster, tmp_path, nodes=nodes)
        yield site
        site.clear()


async def test_a_plan_is_carried_out_and_changed_under_load_beside_a_worker_started_by_hand(site: RaySite) -> None:
    cluster = site.cluster
    cluster.schedule()
    await cluster.join("by-hand", instant_engine(cluster.model))
    supervisor = await site.start()
    first = [planned("a", "--seats", "2"), planned("b", "--seats", "2", host="there")]
    await site.write(*first)
    await site.serves(*first, beside=("by-hand",))

    served: list[int] = []
    feeding = asyncio.Event()

    async def feed() -> list[str]:
        batches: list[str] = []
        while not feeding.is_set():
            batches.append(await cluster.submit(20, prefix=f"s{len(batches)}-"))
            served.append(len(await site.ready() - {"by-hand"}))
            await asyncio.sleep(0.05)
        return batches

    feeder = asyncio.ensure_future(feed())
    second = [planned("a", "--seats", "4"), first[1], planned("c")]
    await site.write(*second)
    await site.serves(*second, beside=("by-hand",))
    feeding.set()
    for number, batch in enumerate(await feeder):
        exactly_once(await cluster.collect(batch), 20, f"s{number}-")
    assert min(served) >= 2
    await site.stop(supervisor)
    assert await site.ready() == {"by-hand"}


async def test_a_node_goes_and_another_comes_and_a_worker_and_the_supervisor_are_killed(site: RaySite) -> None:
    nodes = site.nodes
    first = await site.start()
    workers = [planned(name) for name in "abcde"]
    await site.write(*workers)
    await site.serves(*workers)
    gone = next(node for process in site.processes() if (node := nodes.of(process)) is not None)
    there = [process for process in site.processes() if nodes.of(process) is gone]
    nodes.remove(gone)
    await eventually(lambda: not any(process.is_running() for process in there), "they went with their node")
    await site.says("its Ray node is gone")

    async def left_serve() -> bool:
        return len(await site.ready()) == len(site.running()) == len(workers) - len(there)

    await eventually(left_serve, "the others go on", timeout=_PATIENCE_S)
    nodes.add()  # as Ray's autoscaler does
    await site.serves(*workers)

    [*_, victim] = site.processes()
    victim.kill()
    await site.says("killed by SIGKILL")
    await site.serves(*workers)

    standby = await site.start()
    await site.says("standing by")
    before = site.processes()
    first.send_signal(signal.SIGKILL)
    await first.wait()
    await eventually(lambda: not any(process.is_running() for process in before), "no orphans", timeout=_PATIENCE_S)
    await site.serves(*workers)
    await site.stop(standby)


async def test_where_both_do_not_fit_the_old_one_drains_first_and_what_never_fits_changes_nothing(
    site: RaySite,
) -> None:
    supervisor = await site.start("--room-s", "1")
    workers = [planned(f"w{i}") for i in range(1 + 2 * len(site.nodes.more))]
    await site.write(*workers)
    await site.serves(*workers)
    changed = [planned("w0", "--seats", "2"), *workers[1:]]
    await site.write(*changed)
    await site.serves(*changed)
    assert site.said.count(" drains") == 1

    gpu = PlannedWorker("w0", "h", ("--engine", "simulated"), "NVIDIA A100-SXM4-80GB", (0, 1), 2)
    await site.write(gpu, *workers[1:])
    await site.says("no node of the Ray cluster has 2 x A100")
    await site.serves(*changed)
    await site.write(*workers[1:])
    await site.serves(*workers[1:])
    await site.stop(supervisor)


async def test_no_ray_cluster_is_one_line(site: RaySite) -> None:
    supervisor = await site.start("--address", "127.0.0.1:1")
    await asyncio.wait_for(supervisor.wait(), _PATIENCE_S)
    assert supervisor.returncode == 2
    assert "no Ray cluster at 127.0.0.1:1" in site.said
    assert "Traceback" not in site.said
