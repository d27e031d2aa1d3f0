"""Whether a batch file can run, as OpenAI's Batch API checks it: all of it, before any of it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from broker.errors import InputFileError
from broker.openai_batch import LineError, RequestLine
from tokenyard.batch_files import read_requests
from tokenyard.gateway.objects import BatchError

#: So many lines that cannot run are told of.
_MOST_TOLD = 100


def check_file(path: Path, endpoint: str, models: Collection[str], max_line_bytes: int) -> tuple[int, list[BatchError]]:
    """How many requests a file holds, and the first of its mistakes. Reads all of it: call it in a thread.

    Args:
        path: the file; its name stands in no message.
        endpoint: the URL that each request must have.
        models: names that are served.
        max_line_bytes: longest line.
    """
    requests = 0
    errors: list[BatchError] = []
    try:
        for line in read_requests(path, max_line_bytes=max_line_bytes):
            requests += 1
            error = _error_of(line, endpoint, models, path)
            if error is not None and len(errors) < _MOST_TOLD:
                errors.append(error)
    except InputFileError as error:
        errors.append(BatchError(code="invalid_file", message=_without_path(str(error), path)))
    return requests, errors


def good_lines(lines: Iterable[RequestLine | LineError]) -> Iterable[RequestLine]:
    """The requests; a file that was checked has nothing else."""
    return (line for line in lines if isinstance(line, RequestLine))


def _error_of(line: RequestLine | LineError, endpoint: str, models: Collection[str], path: Path) -> BatchError | None:
    if isinstance(line, LineError):
        return BatchError(code=line.code, message=_without_path(line.message, path), line=line.line)
    if line.url != endpoint:
        message = f"the batch's endpoint is {endpoint}, this request's url is {line.url}"
        return BatchError(code="mismatched_url", message=message, line=line.line, param="url")
    if line.model not in models:
        message = f"no pool serves model {line.model[:128]!r}; served here: {', '.join(sorted(models)) or 'none'}"
        return BatchError(code="model_not_found", message=message, line=line.line, param="body.model")
    return None


def _without_path(message: str, path: Path) -> str:
    """Where the gateway keeps a file is nobody's business."""
    return message.replace(str(path), "file")
