"""A step that may be killed and run again (cron, Airflow, Spark): its batch has a key, its requests have ids.

Run it twice: the second time nothing is queued, and the answers are the same.
"""

import os
from collections.abc import Iterator
from typing import Any

from tokenyard import Client

DAY = os.environ.get("DAY", "2026-11-22")
TICKETS = {"t-1": "The printer is on fire.", "t-2": "How do I reset my password?", "t-3": "Thanks, all good."}


def requests() -> Iterator[dict[str, Any]]:
    """A generator: it may as well be a cursor over millions of rows."""
    for ticket, text in TICKETS.items():
        prompt = f"Answer with one word, urgent or not: {text}"
        yield {"custom_id": ticket, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4}


with Client() as client:
    report = client.submit(requests(), batch=f"triage-{DAY}", priority="high")
    print(f"{report.accepted} queued, {report.known} known already")
    for result in client.results(report.batch):
        print(result.custom_id, result.text if result.ok else f"failed: {result.why}")
