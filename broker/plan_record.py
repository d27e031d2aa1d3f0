"""A plan as text: what is written to Redis, and read from it with every field checked. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

import msgspec

from broker.errors import UsageError
from broker.pool_plan import MAX_PLAN_BYTES, PlannedWorker, PoolPlan
from broker.worker_options import devices_of

MOST_WORKERS = 10_000
_MOST_OPTIONS = 100
_MOST_CHARS = 4096
_MOST_DEVICES = 4096
_MOST_INDEX = 10**5
_MOST_TENSOR_PARALLEL = 1024
#: Redis' Lua and JSON readers keep whole numbers exact up to here.
_MOST_VERSION = 2**53
_MOST_NUMBER = 1e15
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def plan_text(plan: PoolPlan) -> bytes:
    """A plan as JSON.

    Raises:
        UsageError: it is none that ``parse_plan`` would take.
    """
    _check_plan(plan)
    text = msgspec.json.encode(plan)
    if len(text) > MAX_PLAN_BYTES:
        raise UsageError(f"the plan takes {len(text):,} bytes; at most {MAX_PLAN_BYTES:,} are kept: plan fewer workers")
    return text


def parse_plan(text: bytes) -> PoolPlan:
    """A plan from its JSON.

    Raises:
        UsageError: it is none; the message names the first thing that is wrong (anyone can write to Redis).
    """
    if len(text) > MAX_PLAN_BYTES:
        raise UsageError(f"not a plan: it is longer than {MAX_PLAN_BYTES:,} bytes")
    try:
        plan = msgspec.json.decode(text, type=PoolPlan)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not a plan: {error}") from None
    _check_plan(plan)
    return plan


def _check_plan(plan: PoolPlan) -> None:
    _need(1 <= plan.version <= _MOST_VERSION, "its version is no number from 1 on")
    _need(_number(plan.made), "'made' is no time")
    _need(_number(plan.tokens_per_s), "its tokens_per_s is no rate")
    _need(plan.price_per_hour is None or _number(plan.price_per_hour), "its price_per_hour is no price")
    _need(_text(plan.reason), "its reason is no line of text")
    _need(0 <= plan.min_workers <= MOST_WORKERS, "its min_workers is no number of workers")
    _need(len(plan.workers) <= MOST_WORKERS, f"it has more than {MOST_WORKERS:,} workers")
    for worker in plan.workers:
        _check_worker(worker)
    _need(len(plan.idle_hosts) <= MOST_WORKERS, f"it has more than {MOST_WORKERS:,} idle_hosts")
    _need(all(_text(host, 253) and bool(host) for host in plan.idle_hosts), "one of its idle_hosts is no name")
    both = {worker.host for worker in plan.workers} & set(plan.idle_hosts)
    _need(not both, f"{min(both, default='')} is to run workers, and nothing")
    _check_together(plan.workers)


def _check_worker(worker: PlannedWorker) -> None:
    name = worker.name[:120]
    _need(bool(_NAME.fullmatch(worker.name)), f"{name!r} is no worker's name: use letters, digits, '.', '_' and '-'")
    _need(_text(worker.host, 253) and bool(worker.host), f"worker {name}: its host is no name")
    _need(_text(worker.device, 256), f"worker {name}: its device is no name")
    _need(len(worker.options) <= _MOST_OPTIONS, f"worker {name}: it has more than {_MOST_OPTIONS} options")
    _need(all(_text(word) for word in worker.options), f"worker {name}: an option is no word")
    _need(len(worker.devices) <= _MOST_DEVICES, f"worker {name}: it has more than {_MOST_DEVICES:,} devices")
    _need(all(0 <= index <= _MOST_INDEX for index in worker.devices), f"worker {name}: a device is no index")
    _need(1 <= worker.tensor_parallel <= _MOST_TENSOR_PARALLEL, f"worker {name}: its tensor_parallel is none")
    _need(_number(worker.tokens_per_s), f"worker {name}: its tokens_per_s is no rate")
    priced = worker.price_per_hour is None or _number(worker.price_per_hour)
    _need(priced, f"worker {name}: its price_per_hour is no price")


def _check_together(workers: Iterable[PlannedWorker]) -> None:
    names: Counter[str] = Counter()
    owners: dict[tuple[str, str], str] = {}
    for worker in workers:
        names[worker.name] += 1
        _need(names[worker.name] == 1, f"two workers are named {worker.name}")
        for device in devices_of(worker):
            owner = owners.setdefault((worker.host, device), worker.name)
            whose = f"{device} of {worker.host}"
            _need(owner == worker.name, f"{whose} is given to both {owner} and {worker.name}")
        _need(len(set(worker.devices)) == len(worker.devices), f"worker {worker.name} has one device twice")


def _need(right: bool, problem: str) -> None:
    if not right:
        raise UsageError(f"not a plan: {problem}")


def _number(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= _MOST_NUMBER


def _text(value: str, most: int = _MOST_CHARS) -> bool:
    return len(value) <= most and value.isprintable()
