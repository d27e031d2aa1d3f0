"""Results of jobs as a client reads them, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from broker.jobs import Result
from tokenyard.ended_jobs import EndedJobs, JobColumns

_RESULT: dict[str, Any] = {
    "cursor": "1000-0",
    "job_id": "b.j",
    "custom_id": "c",
    "status_code": 200,
    "body": b"",
    "error_code": "",
    "error_message": "",
    "prompt_tokens": 10,
    "output_tokens": 5,
    "attempt": 1,
}


def result(worker: str = "w", **fields: Any) -> Result:
    """A good result, one second submitted before its dispatch, and started with it, unless told otherwise."""
    dispatched = fields.get("dispatched", 0.0)
    known: dict[str, Any] = {
        **_RESULT,
        "worker": worker,
        "submitted": max(0.0, dispatched - 1.0),
        "started": dispatched,
    }
    return Result(**(known | fields))


def columns(*results: Result, pool: str = "") -> JobColumns:
    """Their numbers."""
    jobs = EndedJobs()
    jobs.add(results, pool)
    return jobs.columns()
