"""One batch file through a vLLM engine, under Tokenyard and by ``vllm run-batch``: for ``engine_overhead``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.cluster import BenchmarkError, bench_cluster
from benchmarks.report import server_name
from broker.client import Client, new_batch_id
from broker.openai_batch import LineError, RequestLine
from tokenyard.batch_files import read_requests
from workers.engines.vllm_options import VllmOptions

_START_TIMEOUT_S = 600
_RUN_TIMEOUT_S = 3600
_MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What one run of a batch file gave.

    Attributes:
        seconds: from the first request to the last response.
        cpu_seconds: CPU time of all processes meanwhile.
        output_tokens: tokens generated, by the engine's count.
        texts: custom_id -> text of the answer; requests that failed are not in it.
    """

    seconds: float
    cpu_seconds: float
    output_tokens: int
    texts: dict[str, str]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The one engine both run; see ``VllmOptions``."""

    model: str
    name: str
    dtype: str
    seats: int
    context: int
    kv_gib: float
    cores: str | None
    eager: bool
    step_tokens: int

    def vllm_options(self) -> VllmOptions:
        """The options that a worker with ``worker_words`` gives its engine, too."""
        return VllmOptions(
            model=self.model,
            served_names=(self.name,),
            dtype=self.dtype,
            seats=self.seats,
            context_tokens=self.context,
            kv_gib=self.kv_gib,
            cores=self.cores,
            enforce_eager=self.eager,
            engine_args={"max-num-batched-tokens": self.step_tokens},
        )

    def worker_words(self) -> list[str]:
        """Options of ``tokenyard worker``."""
        words = ["--engine", "vllm", "--served-name", self.name, "--dtype", self.dtype, "--seats", str(self.seats)]
        words += ["--context", str(self.context), "--kv-gib", str(self.kv_gib)]
        words += ["--engine-arg", f"max-num-batched-tokens={self.step_tokens}"]
        words += ["--cores", self.cores] if self.cores else []
        return [*words, "--eager"] if self.eager else words


async def run_tokenyard(settings: EngineSettings, source: Path) -> tuple[BatchRun, str]:
    """Run the file through client, scheduler and one vLLM worker; also returns the server's name."""
    requests = _requests(source)
    async with bench_cluster(settings.model, [settings.name]) as cluster:
        await cluster.start_scheduler()
        await cluster.start_workers(1, settings.worker_words(), timeout_s=_START_TIMEOUT_S)
        batch = new_batch_id()
        cpu = cluster.cpu_seconds()
        begin = time.perf_counter()
        await cluster.client.submit(requests, batch)
        await cluster.client.seal(batch)
        reading = asyncio.ensure_future(_collect(cluster.client, batch))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=1)
                cluster.check()
        finally:
            reading.cancel()
        cpu_used = sum(cluster.cpu_seconds().values()) - sum(cpu.values())
        end, answers = reading.result()
        return _batch_run(end - begin, cpu_used, answers), await server_name(cluster.client.redis)


async def _collect(client: Client, batch: str) -> tuple[float, dict[str, dict[str, Any]]]:
    """When the last result came, and the responses by custom_id."""
    end = 0.0
    bodies: dict[str, bytes] = {}
    async for results in client.results(batch):
        end = time.perf_counter()
        bodies.update((result.custom_id, result.body) for result in results if result.ok)
    return end, {custom_id: orjson.loads(body) for custom_id, body in bodies.items()}


def _requests(source: Path) -> list[RequestLine]:
    requests: list[RequestLine] = []
    for item in read_requests(source, max_line_bytes=_MAX_LINE_BYTES):
        if isinstance(item, LineError):
            raise BenchmarkError(item.message)
        requests.append(item)
    return requests


def run_vllm(settings: EngineSettings, source: Path, folder: Path) -> BatchRun:
    """Run the file through ``vllm run-batch``.

    Raises:
        BenchmarkError: it failed.
    """
    output, times, log = folder / "run-batch.jsonl", folder / "run-batch.times", folder / "run-batch.log"
    options = json.dumps(asdict(settings.vllm_options()))
    command = [sys.executable, "-m", "benchmarks.vllm_run_batch", "--options", options]
    command += ["--input", str(source), "--output", str(output), "--times", str(times)]
    with log.open("wb") as stream:
        status = _run_in_group(command, stream.fileno())
    if status != 0:
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise BenchmarkError(f"vllm run-batch ended with status {status}: {last}")
    lines = (orjson.loads(line) for line in output.read_bytes().splitlines())
    answers = {line["custom_id"]: line["response"]["body"] for line in lines if line["error"] is None}
    return _batch_run(**orjson.loads(times.read_bytes()), answers=answers)


def _run_in_group(command: list[str], log: int) -> int:
    """Run a command; when it has ended, however that was, so have the processes that it started."""
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(_RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"vllm run-batch did not end within {_RUN_TIMEOUT_S} s") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _batch_run(seconds: float, cpu_seconds: float, answers: dict[str, dict[str, Any]]) -> BatchRun:
    tokens = sum(body["usage"]["completion_tokens"] for body in answers.values())
    return BatchRun(
        seconds, cpu_seconds, tokens, {custom_id: _text(body["choices"]) for custom_id, body in answers.items()}
    )


def _text(choices: Iterable[dict[str, Any]]) -> str:
    return "\n".join(choice["message"]["content"] or "" for choice in choices)
