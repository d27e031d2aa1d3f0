"""Logs at their default level hold no prompt, no answer, no key and no password."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest
from cli_process import Running, start, tokenyard
from cluster_fixtures import PATIENCE_S, cluster_of

from tokenyard.embedded_server import EmbeddedServer
from workers.engines.base import EngineRequest, EngineResponse
from workers.engines.simulated import INSTANT, SimulatedEngine, SimulatedOptions

PROMPT, CUSTOM_ID, PASSWORD, KEY = "m4rk3r-prompt", "m4rk3r-id", "m4rk3r-password", "m4rk3r-key"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _line(custom_id: str, **body: Any) -> bytes:
    fields = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, **body}
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": fields})


async def test_a_run_logs_no_secret(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    bad = [b'{"custom_id": "bad", "body": "' + PROMPT.encode(), _line("refused", max_tokens=-1), _line("x", model="y")]
    source.write_bytes(b"\n".join([*(_line(f"{CUSTOM_ID}{i}") for i in range(20)), *bad]) + b"\n")
    server = EmbeddedServer(tmp_path / "redis", port=_free_port(), password=PASSWORD)
    await server.start()
    said: list[str] = []
    running: list[Running] = []
    try:
        url = server.url
        assert PASSWORD in url
        running.append(await start(url, "scheduler"))
        words = ["--model", "m", "--engine", "simulated", "--name", "w", "--api-key", KEY]
        running.append(await start(url, "worker", *words))
        await running[1].says("is ready")
        submitted = await tokenyard(url, "submit", source, "--errors", tmp_path / "refused.jsonl")
        batch = submitted.out.strip()
        said += [submitted.err, (await tokenyard(url, "follow", batch)).err]
        said.append((await tokenyard(url, "collect", batch, "-o", tmp_path / "out.jsonl")).err)
        said += [(await tokenyard(url, "status")).out, (await tokenyard(url, "report", batch)).out]
        await server.stop()  # an outage is told of, too
        await running[1].says("lost Redis")
        said.append((await tokenyard(url, "status")).err)
        await server.start()
    finally:
        for process in running:
            process.interrupt()
            said.append((await process.end()).err)
        await server.stop()
    assert (tmp_path / "out.jsonl").read_text().count(CUSTOM_ID) == 20
    said += [path.read_text(errors="replace") for path in (tmp_path / "redis").glob("*.log")]
    told = "\n".join(said)
    assert "leading with epoch" in told
    assert "cannot reach Redis" in told
    assert [secret for secret in (PROMPT, PASSWORD, KEY) if secret in told] == []


class Indiscreet(SimulatedEngine):
    """An engine with a fault that repeats what it was asked."""

    async def run(self, request: EngineRequest) -> EngineResponse:
        raise ValueError(f"cannot run {request.body!r}")


async def test_what_a_faulty_engine_says_of_a_request_is_not_logged(
    redis_url: str, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with cluster_of(redis_url, pool, max_attempts=1) as cluster:
        cluster.schedule()
        engine = Indiscreet(SimulatedOptions(profile=INSTANT, models=(cluster.model,)))
        await cluster.join("w", engine)
        (result,) = await cluster.collect(await cluster.submit(1), PATIENCE_S)
    assert result.status_code == 500
    assert b"ValueError" in result.body
    assert "failed in the engine: ValueError" in caplog.text
    assert "Hi." not in caplog.text
