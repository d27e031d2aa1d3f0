"""Try jobs of the dead letters again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.client import Client, new_batch_id
from broker.dead_letters import DeadLetter
from broker.jobs import job_id
from broker.store.client import Bounds
from broker.store.dead import DeadLetterStore
from broker.tenant_names import tenant_of


@dataclass(slots=True)
class Retried:
    """What became of the letters.

    Attributes:
        batches: batch that a job failed in -> the new one, and how many jobs that has.
        bodiless: letters whose request is not kept: it was too long.
    """

    batches: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    bodiless: list[DeadLetter] = field(default_factory=list[DeadLetter])


async def retry_letters(client: Client, pool: str, letters: Sequence[DeadLetter]) -> Retried:
    """Submit the requests of dead letters as fresh jobs, with all their attempts; the letters go.

    They come into a new batch for each batch that they failed in, sealed, with the custom_ids and the priority they
    had. Not into that batch itself: it holds their failures, which somebody may have collected, and a custom_id has one
    result in a batch.
    """
    store, report = DeadLetterStore(client.redis, pool), Retried()
    by_batch: dict[str, list[DeadLetter]] = {}
    for letter in letters:
        by_batch.setdefault(letter.batch, []).append(letter)
    for batch, dead in by_batch.items():
        new, queued = new_batch_id(tenant_of(batch)), 0
        for letter in dead:
            body = await store.body(letter.job_id) if letter.has_body else None
            if body is None:
                report.bodiless.append(letter)
                continue
            fresh = letter.submission(job_id(new, letter.custom_id), body)
            bounds = Bounds(timeout_s=letter.timeout_s)
            queued += await client.store(pool).submit(new, [fresh], letter.priority, bounds)
            await store.drop([letter.job_id])
        if queued:
            await client.store(pool).seal(new)
            report.batches[batch] = new, queued
    return report
