"""Who used the CPU meanwhile: the workers, the rest of the cluster by role, and everybody else on the machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

from benchmarks.cluster import cpu_seconds
from benchmarks.real.processes import RealCluster

_IDLE = ("idle", "iowait", "steal", "guest", "guest_nice")  # guests' time is in user's, too


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU time over wall time, as a share of one core.

    Attributes:
        roles: of workers (their engines included), scheduler, server and client (this process).
        others: of all other processes of the machine.
        load_before: load average over the last minute, before.
    """

    roles: dict[str, float]
    others: float
    load_before: float


class CpuClock:
    """Measures from its making on."""

    def __init__(self, cluster: RealCluster) -> None:
        self._cluster = cluster
        self._load = os.getloadavg()[0]
        self._began = time.monotonic()
        self._roles = self._now()
        self._machine = _machine_seconds()

    def use(self) -> CpuUse:
        """What was used since."""
        elapsed = time.monotonic() - self._began
        now = self._now()
        roles = {role: (seconds - self._roles.get(role, 0.0)) / elapsed for role, seconds in now.items()}
        all_together = (_machine_seconds() - self._machine) / elapsed
        return CpuUse(roles, max(0.0, all_together - sum(roles.values())), self._load)

    def _now(self) -> dict[str, float]:
        cluster = self._cluster
        seconds = {
            "workers": sum(cpu_seconds(worker.pid, and_children=True) for worker in cluster.workers),
            "client": cpu_seconds(os.getpid()),
        }
        if cluster.scheduler is not None:
            seconds["scheduler"] = cpu_seconds(cluster.scheduler.pid)
        if cluster.server.pid is not None:
            seconds["server"] = cpu_seconds(cluster.server.pid)
        return seconds


def _machine_seconds() -> float:
    times = psutil.cpu_times()._asdict()
    return sum(seconds for kind, seconds in times.items() if kind not in _IDLE)
