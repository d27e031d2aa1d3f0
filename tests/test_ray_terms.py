"""What a plan means on Ray, which devices a worker takes there, and who makes room: all without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.errors import UsageError
from broker.pool_plan import PlannedWorker, PoolPlan
from tokenyard.device_claims import claim, release
from tokenyard.ray_terms import RAY_HOST, RayResources, accelerator_type, fits_somewhere, on_ray, resources_of
from tokenyard.supervision import Decision, Host, HostProcess, decide, process_name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("A100-SXM4-80GB", "A100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("", ""),
    ],
)
def test_devices_have_the_names_that_ray_gives_them(kind: str, name: str) -> None:
    assert accelerator_type(kind) == name


def test_a_worker_needs_what_it_was_given() -> None:
    on_cores = PlannedWorker("c", "h", ("--cores", "4-6"), "cpu", (4, 5, 6))
    on_gpus = PlannedWorker("g", "h", (), "NVIDIA L4", (2, 3), 2)
    assert resources_of(on_cores) == RayResources(cpus=3)
    assert resources_of(on_gpus) == RayResources(gpus=2, accelerator="L4")
    assert resources_of(PlannedWorker("n", "h")) == RayResources(cpus=1)


def one(worker: PlannedWorker) -> PlannedWorker:
    [found] = on_ray(PoolPlan(1, 0.0, (worker,))).workers
    return found


def test_where_a_device_is_makes_no_other_worker_and_of_what_kind_it_is_does() -> None:
    here = PlannedWorker("a", "h1", ("--seats", "4"), "L4", (0, 1), 2)
    there = PlannedWorker("a", "h2", ("--seats", "4"), "L4", (2, 3), 2)
    other = PlannedWorker("a", "h1", ("--seats", "4"), "A100", (0, 1), 2)
    assert process_name(one(here)) == process_name(one(there))
    assert process_name(one(here)) != process_name(one(other))
    cores = [PlannedWorker("a", "h", ("--cores", c), "cpu", d) for c, d in (("0-1", (0, 1)), ("2,3", (2, 3)))]
    assert one(cores[0]) == one(cores[1])


def test_only_the_hosts_that_ray_stands_for() -> None:
    plan = PoolPlan(3, 0.0, tuple(PlannedWorker(f"w{i}", f"h{i}") for i in range(3)), min_workers=1)
    found = on_ray(plan, ["h0", "h2"])
    assert [w.host for w in found.workers] == [RAY_HOST, "h1", RAY_HOST]
    assert found.min_workers == 2
    assert {w.host for w in on_ray(plan).workers} == {RAY_HOST}


def test_cores_that_are_not_listed_are_refused() -> None:
    with pytest.raises(UsageError, match="worker a names cores: a plan for Ray must list them in 'devices'"):
        one(PlannedWorker("a", "h", ("--cores", "0-3")))


def test_what_fits_no_node() -> None:
    needed = RayResources(gpus=2, accelerator="L4")
    small = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}}
    other = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 8.0, "accelerator_type:A100": 1.0}}
    right = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:L4": 1.0}}
    assert not fits_somewhere(needed, [small, other, {**right, "Alive": False}])
    assert fits_somewhere(needed, [small, right])


def test_an_old_worker_makes_room_only_where_the_new_one_waits_for_it_and_one_at_a_time() -> None:
    old = [PlannedWorker(name, RAY_HOST, devices=(0,)) for name in "ab"]
    new = PlannedWorker("a", RAY_HOST, ("--seats", "2"), devices=(0,))
    serving = [HostProcess(process_name(w), w, "ready") for w in old]
    assert decide(Host([new], serving, own_devices=False)) == Decision(start=(new,))  # the same index is no conflict
    waiting = [*serving, HostProcess(process_name(new), new, "starting")]
    name = process_name(new)
    assert decide(Host([new], waiting, own_devices=False)) == Decision()
    [first] = decide(Host([new], waiting, own_devices=False, unplaced=[name])).drain
    assert first == serving[0].name
    draining = [serving[0]._replace(phase="draining"), *waiting[1:]]
    assert decide(Host([new], draining, own_devices=False, unplaced=[name])) == Decision()
    assert decide(Host([*old, new], waiting, own_devices=False, unplaced=[name])) == Decision()  # none is to go


async def test_a_device_is_taken_once_and_waited_for(tmp_path: Path) -> None:
    first = await claim(tmp_path, "core", range(4), 2)
    second = await claim(tmp_path, "core", range(4), 2)
    assert sorted([*first, *second]) == [0, 1, 2, 3]
    third = asyncio.ensure_future(claim(tmp_path, "core", range(4), 2))
    await asyncio.sleep(0)
    assert not third.done()
    release(first)
    async with asyncio.timeout(30):
        got = await third
    assert got.keys() == first.keys()
    release(second)
    release(got)
