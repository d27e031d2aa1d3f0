"""Reads what the report of a batch is made of."""

from __future__ import annotations

from broker.client import Client
from broker.store.monitor import MonitorStore
from tokenyard.batch_report import BatchReport, report_of
from tokenyard.ended_jobs import EndedJobs, JobColumns
from tokenyard.known_devices import known_devices

#: Results read in one call.
_READ_RESULTS = 500


async def read_report(client: Client, batch: str) -> tuple[BatchReport, JobColumns]:
    """The report of a batch as far as it has ended, and the numbers of its ended jobs.

    Raises:
        UnknownBatchError: there is no such batch.
    """
    counts = await client.counts(batch)
    pools = await client.pools_of(batch)
    jobs = await _ended_jobs(client, batch, pools)
    devices = known_devices({pool: await MonitorStore(client.redis, pool).heartbeats() for pool in pools})
    return report_of(batch, counts, jobs, devices), jobs


async def _ended_jobs(client: Client, batch: str, pools: list[str]) -> JobColumns:
    """Read page by page: the answers themselves are not kept."""
    jobs = EndedJobs()
    for pool in pools:
        after = "0"
        while page := await client.store(pool).results(batch, after, limit=_READ_RESULTS, block=0):
            jobs.add(page, pool if len(pools) > 1 else "")
            after = page[-1].cursor
    return jobs.columns()
