"""From the results of a batch to the lines of its files."""

from __future__ import annotations

from collections.abc import Callable

from broker.client import Client
from broker.jobs import Result
from broker.openai_batch import failure_line, output_line
from tokenyard.batch_files import BatchOutput


async def collect(
    client: Client, batch_id: str, output: BatchOutput, on_results: Callable[[list[Result]], None]
) -> None:
    """Write every result of a batch as it comes, until the batch is complete.

    Args:
        on_results: told each chunk after it was written.

    Raises:
        UnknownBatchError: there is no such batch.
    """
    async for chunk in client.results(batch_id):
        write_results(output, chunk)
        on_results(chunk)


def write_results(output: BatchOutput, results: list[Result]) -> None:
    """Write results: responses with status 200 to the output file, everything else to the error file."""
    output.write(
        [line_of(result) for result in results if result.ok],
        [line_of(result) for result in results if not result.ok],
    )


def line_of(result: Result) -> bytes:
    """The line of OpenAI's Batch API for a result."""
    if result.status_code:
        return output_line(
            job_id=result.job_id, custom_id=result.custom_id, status_code=result.status_code, body=result.body
        )
    return failure_line(
        job_id=result.job_id, custom_id=result.custom_id, code=result.error_code, message=result.error_message
    )
