"""Lines of batch files for tests, and the rights of nobody."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from broker.openai_batch import custom_id_of, failure_line, output_line


def request(custom_id: str, prompt: str = "hi") -> bytes:
    body = {"model": "m", "prompt": prompt}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(line).encode()


def result(custom_id: str, text: str = "ok") -> bytes:
    return output_line(job_id=f"b.{custom_id}", custom_id=custom_id, status_code=200, body=json.dumps(text).encode())


def failure(custom_id: str) -> bytes:
    return failure_line(job_id=f"b.{custom_id}", custom_id=custom_id, code="batch_expired", message="Too late.")


def refused(custom_id: str | None) -> bytes:
    return failure_line(job_id=None, custom_id=custom_id, code="invalid_url", message="in.jsonl:3: bad")


def ids_in(path: Path) -> list[str | None]:
    return [custom_id_of(line) for line in path.read_bytes().splitlines()]


@contextmanager
def without_root() -> Generator[None]:
    """Run without root's right to read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
