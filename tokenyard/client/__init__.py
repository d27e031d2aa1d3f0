"""The Python client: batches of requests in, results out; sync and async with one core."""

from __future__ import annotations

from broker.jobs import Priority
from tokenyard.client.async_client import AsyncClient
from tokenyard.client.batch_result import BatchResult, BatchStatus, SubmitReport
from tokenyard.client.items import Item, RequestError
from tokenyard.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "BatchResult",
    "BatchStatus",
    "Client",
    "Item",
    "Priority",
    "RequestError",
    "SubmitReport",
]
