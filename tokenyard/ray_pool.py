"""A pool's workers as actors of a Ray cluster. The only module that imports Ray, which is optional."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    ActorDiedError,
    ActorUnavailableError,
    RayError,
    RayTaskError,
)
from ray.util import list_named_actors  # pyright: ignore[reportMissingImports]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

from broker.errors import UsageError
from broker.pool_plan import PlannedWorker
from broker.worker_options import names_cores, with_model
from tokenyard.ray_actor import WorkerHost
from tokenyard.ray_terms import RayResources, fits_somewhere, on_ray, resources_of
from tokenyard.supervision import process_name
from tokenyard.worker_site import Child, WorkerSite

log = logging.getLogger(__name__)

_SUPERVISOR = "supervisor"
_LOOK_S = 0.5
#: The exit code of a worker whose actor went away under it: it was killed.
_KILLED = -9
_ANY_CORES = 10**6
_KNOCK_S = 5.0


@contextmanager
def ray_cluster(address: str, pool: str) -> Generator[None]:
    """Be connected to a Ray cluster for the length of the block, in a namespace of this pool.

    Raises:
        UsageError: there is none.
    """
    if "://" in address:
        raise UsageError(f"--address {address}: run this on a node of the Ray cluster, and give HOST:PORT or auto")
    try:
        _knock(address)
        ray.init(
            address=address,
            namespace=f"tokenyard-{pool}",
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise UsageError(f"no Ray cluster at {address} ({why}): start one with `ray start --head`") from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Fail soon where nobody listens: Ray itself tries for a minute."""
    host, _, port = address.rpartition(":")
    if port.isascii() and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


class _Holder:
    """An actor that does nothing: whoever has it under its name supervises the pool."""


async def only_supervisor(report: Callable[[str], None]) -> Any:
    """Wait until this process is the only one that supervises its pool, and the workers of the last one are gone.

    Returns:
        What must be kept as long as that is to last. It ends with this process, however that ends.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    make = ray.remote(_Holder).options(name=_SUPERVISOR, num_cpus=0, scheduling_strategy=here)
    told = False
    while True:
        with suppress(ValueError):  # the name is taken
            holder = make.remote()
            break
        if not told:
            report("another process supervises this pool on Ray: standing by")
            told = True
        await asyncio.sleep(_LOOK_S)
    while set(list_named_actors()) - {_SUPERVISOR}:  # noqa: ASYNC110  they are other processes
        await asyncio.sleep(_LOOK_S)
    return holder


def ray_site(
    models: Sequence[str], environment: Mapping[str, str], hosts: Collection[str], room_s: float
) -> WorkerSite:
    """The Ray cluster that this process is connected to.

    Args:
        models: models that may run there; the first where a plan names none.
        environment: what workers have beside what their node has.
        hosts: the plan's hosts that Ray stands for; all where empty.
        room_s: see ``WorkerSite``.
    """
    return WorkerSite(
        child_of=lambda planned: _RayChild(planned, models, environment),
        view=lambda plan: on_ray(plan, hosts),
        cores=_ANY_CORES,
        own_devices=False,
        room_s=room_s,
    )


class _RayChild(Child):
    """A ``tokenyard worker`` in an actor of its own, placed by Ray."""

    def __init__(self, planned: PlannedWorker, models: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name = process_name(planned)
        self._needed: RayResources = resources_of(planned)
        self._words = with_model(planned.options, models)
        self._cores = names_cores(planned.options)
        self._environment = environment
        self._pid = -1
        self._log_at = "on the node that Ray gives it"
        self._why = "not started"
        self._told = False
        self._actor: Any = None
        self._life: asyncio.Task[int] | None = None

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def log_at(self) -> str:
        return self._log_at

    @property
    def waits_for_room(self) -> bool:
        if self._pid >= 0:
            return False
        fits = fits_somewhere(self._needed, ray.nodes())
        if not fits and not self._told:
            log.warning("worker %s waits: no node of the Ray cluster has %s", self._name, self._needed)
            self._told = True
        return fits

    async def start(self) -> None:
        options = {
            "name": f"{self._name} {secrets.token_hex(4)}",  # the one before may be about to go
            "num_cpus": self._needed.cpus,
            "num_gpus": self._needed.gpus,
            "resources": self._needed.custom,
            "max_restarts": 0,
        }
        make = ray.remote(WorkerHost).options(**options)
        self._actor = make.remote(self._name, self._words, self._environment, self._needed, cores=self._cores)
        self._life = asyncio.ensure_future(self._live(self._actor))

    async def wait(self) -> int:
        assert self._life is not None, "start() comes first"
        return await asyncio.shield(self._life)

    def terminate(self) -> None:
        if self._pid < 0:
            self._kill()
        elif self._lives:
            self._actor.terminate.remote()

    async def stop(self, timeout_s: float | None = None) -> None:
        if self._pid < 0:
            self._kill()
        elif self._lives:
            with suppress(RayError):
                await self._actor.stop.remote(*(() if timeout_s is None else (timeout_s,)))

    def how_it_ended(self) -> str:
        return self._why

    @property
    def _lives(self) -> bool:
        """Whether there is an actor to talk to. Without a connection, Ray would make one to any cluster it finds."""
        return self._life is not None and not self._life.done() and bool(ray.is_initialized())

    async def _live(self, actor: Any) -> int:
        """From the wait for room to the worker's end, which is its actor's, too."""
        try:
            self._pid, self._log_at = await actor.start.remote()
            log.info("worker %s was placed (log: %s)", self._name, self._log_at)
            code, self._why = await self._end(actor)
        except RayTaskError as error:
            code, self._why = 1, str(error.cause)
        except ActorDiedError as error:
            code, self._why = _KILLED, "its Ray node is gone" if "node has died" in str(error) else "its Ray actor died"
        except RayError as error:
            code, self._why = _KILLED, str(error).strip().splitlines()[0]
        finally:
            self._kill()
        return code

    @staticmethod
    async def _end(actor: Any) -> tuple[int, str]:
        """How its worker ends; a connection that breaks meanwhile is no end: Ray finds out whether the actor lives."""
        while True:
            try:
                return await actor.wait.remote()
            except ActorUnavailableError:
                await asyncio.sleep(_LOOK_S)

    def _kill(self) -> None:
        if self._actor is not None and ray.is_initialized():
            with suppress(RayError, ValueError):
                ray.kill(self._actor)
