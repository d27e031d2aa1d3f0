"""A plan that a person asked for, written for the pool's supervisors."""

from __future__ import annotations

from collections.abc import Sequence

from broker.connection import RedisClient
from broker.errors import TokenyardError
from broker.pool_plan import PoolPlan, hosts_of
from broker.store.monitor import MonitorStore
from broker.store.plans import PlanStore, StoredPlan
from planner.cluster_plan import ClusterPlan, pool_plan
from planner.resizing import same_workers

#: Hosts that are named in one line, at most.
_MOST_HOSTS = 3


class PlanOverwrittenError(TokenyardError):
    """Another plan was written between reading the pool's plan and replacing it; nothing was changed."""


async def read_plan(redis: RedisClient, pool: str) -> StoredPlan:
    """The pool's plan as it is before the search: what ``write_plan`` replaces, and nothing else."""
    return await PlanStore(redis, pool).read()


async def write_plan(
    redis: RedisClient, pool: str, plan: ClusterPlan, over: StoredPlan, model: Sequence[str], utilization: float
) -> str:
    """Write a plan in place of the one that was read.

    Args:
        redis: where the pool is.
        pool: its name.
        plan: what to run.
        over: the pool's plan as it was read before the search.
        model: the options of ``tokenyard worker`` that name the model.
        utilization: share of a GPU's memory that engines use.

    Returns:
        One line on what came of it.

    Raises:
        PlanOverwrittenError: another plan was written meanwhile.
        UsageError: supervisors would not take the plan; says why.
    """
    made = await MonitorStore(redis, pool).clock()
    reason = f"written by hand: {plan.tokens_per_s:,.0f} tokens/s expected"
    new = pool_plan(plan, model, version=1, made=made, reason=reason, utilization=utilization)
    if over.plan is not None and same_workers(over.plan, new) and over.plan.min_workers == new.min_workers:
        return f"plan {over.plan.version} of pool {pool} has these very workers: it stays"
    plans = PlanStore(redis, pool)
    written = await plans.write(new, over)
    if written is None:
        raise PlanOverwrittenError(
            f"another plan of pool {pool} was written meanwhile: it stays; look at it and run this again"
        )
    return said(pool, written, over.plan, await plans.without_supervisor(hosts_of(written)))


def said(pool: str, written: PoolPlan, before: PoolPlan | None, unwatched: Sequence[str] = ()) -> str:
    """One line on a plan that was written, on hosts that it has nothing for any more, and on ``unwatched`` ones, where
    no supervisor carries it out."""
    hosts = {worker.host for worker in written.workers}
    ran = {worker.host for worker in before.workers} - hosts if before else set[str]()
    idle, gone = sorted(ran & set(written.idle_hosts)), sorted(ran - set(written.idle_hosts))
    line = (
        f"plan {written.version} of pool {pool}: {_count(len(written.workers), 'worker')} on "
        f"{_count(len(hosts), 'host')}; their supervisors carry it out"
    )
    if idle:
        line += f"; {_names(idle)} will run nothing"
    if gone:
        line += f"; it has nothing for {_names(gone)}: what runs there stays as it is"
    if unwatched:
        line += f"; no supervisor on {_names(unwatched)}: nothing of it starts there before one does"
    return line


def _names(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:_MOST_HOSTS]) + (" and others" if len(hosts) > _MOST_HOSTS else "")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
