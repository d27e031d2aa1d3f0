"""What a plan means on Ray: its devices are counted, and Ray says where they are. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from broker.errors import UsageError
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.worker_options import names_cores, options_of

#: What stands for all of Ray's nodes where a plan has hosts.
RAY_HOST = "ray"
#: Ray's own pattern (``NvidiaGPUAcceleratorManager``), less the vendor's name.
_GPU_TYPE = re.compile(r"(?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*")
#: What an accelerator type is asked for with, as Ray's ``accelerator_type`` does: a node of it has 1.
_A_LITTLE = 0.001


class RayResources(NamedTuple):
    """What an actor is placed by.

    Attributes:
        cpus: cores of one node.
        gpus: GPUs of the same node.
        accelerator: Ray's name of their type; empty where any will do.
    """

    cpus: int = 1
    gpus: int = 0
    accelerator: str = ""

    @property
    def custom(self) -> dict[str, float]:
        """The part that is neither cores nor GPUs."""
        return {f"accelerator_type:{self.accelerator}": _A_LITTLE} if self.accelerator else {}

    def fit(self, total: Mapping[str, float]) -> bool:
        """Whether a node with these resources in all could hold it."""
        needed = {"CPU": float(self.cpus), "GPU": float(self.gpus), **self.custom}
        return all(total.get(name, 0.0) >= amount for name, amount in needed.items())

    def __str__(self) -> str:
        """For people, such as ``2 x A100``."""
        return f"{self.gpus} x {self.accelerator or 'GPU'}" if self.gpus else f"{self.cpus} x CPU"


def accelerator_type(kind: str) -> str:
    """Ray's name for GPUs of this kind (as nvidia-smi says it); empty where it has none that follows from that.

    Source: ``ray/_private/accelerators/nvidia_gpu.py``; the names are listed in ``ray.util.accelerators``.
    """
    found = _GPU_TYPE.match(re.sub(r"^(NVIDIA|Tesla)\s+", "", kind))
    return re.sub(r"\s+", "-", found.group()) if found else ""


def resources_of(worker: PlannedWorker) -> RayResources:
    """What a planned worker needs: the cores or GPUs it was given, or one core where it was given none."""
    if not worker.devices:
        return RayResources()
    if names_cores(worker.options):
        return RayResources(cpus=len(worker.devices))
    return RayResources(gpus=len(worker.devices), accelerator=accelerator_type(worker.device))


def on_ray(plan: PoolPlan, hosts: Collection[str] = ()) -> PoolPlan:
    """The plan with the workers of these hosts (of all, without any) on ``RAY_HOST``.

    Which device of which host a worker has does not matter any more, only how many of which kind: where nothing else
    changed, it is the same worker.

    Raises:
        UsageError: a worker keeps to cores that the plan does not list.
    """
    workers = tuple(_on_ray(w) if not hosts or w.host in hosts else w for w in plan.workers)
    moved = len({before.host for before, after in zip(plan.workers, workers, strict=True) if after.host == RAY_HOST})
    return msgspec.structs.replace(plan, workers=workers, min_workers=plan.min_workers * moved)


def fits_somewhere(needed: RayResources, nodes: Iterable[Mapping[str, object]]) -> bool:
    """Whether one of Ray's nodes (as ``ray.nodes()`` tells of them) is large enough, were it empty."""
    totals = [node["Resources"] for node in nodes if node.get("Alive")]
    return any(isinstance(total, Mapping) and needed.fit(total) for total in totals)


def with_cores(words: Iterable[str], cores: Collection[int]) -> list[str]:
    """A worker's options, with these cores where they name some."""
    named = ",".join(map(str, sorted(cores)))
    found: list[str] = []
    for name, value in options_of(list(words)):
        found += [name] if not value else [name, named if name == "--cores" else value]
    return found


def _on_ray(worker: PlannedWorker) -> PlannedWorker:
    if names_cores(worker.options) and not worker.devices:
        raise UsageError(f"worker {worker.name} names cores: a plan for Ray must list them in 'devices', too")
    needed, count = resources_of(worker), len(worker.devices)
    return msgspec.structs.replace(
        worker,
        name=f"{worker.name}.{needed.gpus}x{needed.accelerator or 'gpu'}" if needed.gpus else worker.name,
        host=RAY_HOST,
        options=tuple(with_cores(worker.options, range(count))),
        devices=tuple(range(count)),
    )
