"""Finds a job, wherever it is, and explains it."""

from __future__ import annotations

from broker.client import Client
from broker.errors import UnknownBatchError
from broker.job_record import JobRecord, UnknownJobError, batch_of, ended_job
from broker.jobs import job_id
from broker.openai_batch import ID_PREFIX
from broker.store.monitor import MonitorStore
from tokenyard.job_explanation import Explanation, explain
from tokenyard.known_devices import known_devices


async def explain_job(client: Client, name: str, batch: str | None) -> Explanation:
    """Explain the job of that id or, where a batch is given, of that custom_id.

    Raises:
        UnknownBatchError: there is no such batch.
        UnknownJobError: there is no such job.
    """
    if batch is None:
        found = await _find(client, name.removeprefix(ID_PREFIX))
        if found is None:
            raise UnknownJobError(f"no job {name}: give its id as the output file has it, or --batch BATCH CUSTOM_ID")
        return found
    if not await client.pools_of(batch):
        raise UnknownBatchError(f"no batch {batch}: `tokenyard status` lists the ones there are")
    found = await _find(client, job_id(batch, name))
    if found is None:
        raise UnknownJobError(f"batch {batch} has no job with custom_id {name}")
    return found


async def _find(client: Client, identity: str) -> Explanation | None:
    batch = batch_of(identity)
    for pool in await client.pools_of(batch) if batch else []:
        monitor = MonitorStore(client.redis, pool)
        record = await monitor.job(identity) or await _ended(client, pool, identity)
        if record is not None:
            return explain(record, known_devices({pool: await monitor.heartbeats()}), await monitor.clock())
    return None


async def _ended(client: Client, pool: str, identity: str) -> JobRecord | None:
    cursor = await MonitorStore(client.redis, pool).cursor_of(identity)
    if cursor is None:
        return None
    results = await client.store(pool).results(batch_of(identity), cursor, limit=1, block=0)
    return ended_job(results[0]) if results and results[0].job_id == identity else None
