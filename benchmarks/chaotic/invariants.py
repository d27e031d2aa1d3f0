"""What must be true when all is over: seen in the clients' files, and in Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from benchmarks.chaotic.clients import BatchClient
from benchmarks.chaotic.jobs import BatchFile
from benchmarks.chaotic.service import Service
from broker.keys import LEVELS, PoolKeys

#: Entries read in one call.
_PAGE = 1000
#: Codes of errors by which a good job is given up, with its reason told: a dead letter.
_GIVEN_UP = "attempts"
#: Statuses from here on are the engine's failure in the last attempt.
_ENGINE_FAILED = 500


@dataclass(slots=True)
class Findings:
    """What was found.

    Attributes:
        lost: accepted jobs with neither a result nor an error.
        doubled: results over one a job.
        wrong: good jobs with an error that is none of being given up, bad jobs with a response.
        given_up: good jobs that lost their worker, or got an error of the engine's (5xx), too often: told as errors.
        killers_given_up: jobs that kill an attached server, and were found out.
        stuck: jobs that are still there though every batch has ended, or batches that have not.
        says: what each of these is, some lines.
    """

    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    given_up: int = 0
    killers_given_up: int = 0
    stuck: int = 0
    says: list[str] = field(default_factory=list[str])


async def check(clients: Sequence[BatchClient], service: Service, workers: Sequence[str]) -> Findings:
    """Look at all files and all of Redis."""
    found = Findings()
    for client in clients:
        lost, doubled = check_files(client, found)
        if client.submitted:
            more_lost, more_doubled = await _check_results(service, client.batch, found)
            lost, doubled = lost | more_lost, doubled + more_doubled
        found.lost += len(lost)
        found.doubled += sum(doubled.values())
    await _check_left(service, workers, found)
    return found


def check_files(client: BatchClient, found: Findings) -> tuple[set[str], Counter[str]]:
    """Jobs in no file, and those that are in them more than once: how often too many."""
    batch = client.batch
    responses = _lines(client.out)
    errors = _lines(client.errors_out)
    seen = Counter(line["custom_id"] for line in (*responses, *errors))
    if not client.done:
        found.stuck += batch.size - len(seen)
        found.says.append(f"{batch.name}: its client did not come to an end")
    missing = batch.all - seen.keys() if client.done else frozenset[str]()
    if missing:
        found.says.append(f"{batch.name}: in no file: {_some(missing)}")
    if again := seen - Counter(seen.keys()):
        found.says.append(f"{batch.name}: more than once in the files: {_some(again)}")
    _check_kinds(batch, responses, errors, found)
    return set(missing), again


def _check_kinds(
    batch: BatchFile, responses: Sequence[dict[str, Any]], errors: Sequence[dict[str, Any]], found: Findings
) -> None:
    if bad := [line["custom_id"] for line in responses if line["custom_id"] not in batch.good | batch.killers]:
        found.wrong += len(bad)
        found.says.append(f"{batch.name}: bad jobs with a response: {_some(bad)}")
    for line in errors:
        if line["custom_id"] in batch.bad:
            continue
        if line["custom_id"] in batch.killers:
            found.killers_given_up += _is_given_up(line)
        elif _is_given_up(line):
            found.given_up += 1
        else:
            found.wrong += 1
            found.says.append(f"{batch.name}: {line['custom_id']} failed: {orjson.dumps(line)[:200].decode()}")


def _is_given_up(line: dict[str, Any]) -> bool:
    """Whether an error says that all attempts were used up: the worker was lost, or the engine failed, in the last."""
    status = int((line.get("response") or {}).get("status_code", 0))
    return _GIVEN_UP in str((line.get("error") or {}).get("code", "")) or status >= _ENGINE_FAILED


async def _check_results(service: Service, batch: BatchFile, found: Findings) -> tuple[set[str], Counter[str]]:
    """The same in Redis."""
    counts = {k.decode(): v.decode() for k, v in (await service.client.hgetall(service.keys.batch(batch.name))).items()}
    ended = sum(int(counts.get(name, 0)) for name in ("done", "failed", "cancelled"))
    total = int(counts.get("total", 0))
    if ended != total:
        found.stuck += abs(total - ended)
        found.says.append(f"{batch.name}: {ended} of {total} jobs have ended, says Redis")
    jobs: Counter[str] = Counter()
    after = "-"
    while page := await service.client.xrange(service.keys.results(batch.name), after, "+", count=_PAGE):
        jobs.update(fields[b"custom_id"].decode() for _, fields in page)
        after = f"({page[-1][0].decode()}"
    if again := jobs - Counter(jobs.keys()):
        found.says.append(f"{batch.name}: more than one result in Redis: {_some(again)}")
    if missing := batch.all - jobs.keys():
        found.says.append(f"{batch.name}: no result in Redis: {_some(missing)}")
    return set(missing), again


async def _check_left(service: Service, workers: Sequence[str], found: Findings) -> None:
    """Every batch has ended: no job, no body, no entry of a queue may be left."""
    keys: PoolKeys = service.keys
    jobs = [name async for name in service.client.scan_iter(match=f"{keys.prefix}job:*", count=_PAGE)]
    bodies = [name async for name in service.client.scan_iter(match=f"{keys.prefix}body:*", count=_PAGE)]
    queues = [keys.requests(level) for level in LEVELS] + [keys.device(name) for name in workers]
    entries = {queue: await service.client.xlen(queue) for queue in queues}
    left = {"jobs": len(jobs), "bodies": len(bodies)} | {queue: count for queue, count in entries.items() if count}
    if any(left.values()):
        found.stuck += max(left.values())
        found.says.append(f"left in Redis: {', '.join(f'{count} {what}' for what, count in left.items() if count)}")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
