"""Streaming chats through the gateway, beside the same chats at the bare engine: what the queue adds to a first token.

Both are the same simulated device, each a process of its own; rounds take turns. All streams of a round are open at a
time. The clock of a stream runs from its request to its first token that is not empty.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import orjson

from benchmarks.cluster import BenchCluster, BenchmarkError, bench_cluster
from benchmarks.report import Report, Value, at_least, note, options_parser, percentile, run_benchmark, server_name
from benchmarks.routing.servers import Program, running_servers, until_said
from benchmarks.routing.workload import MODEL
from broker.throughput import Profile

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_PROMPT = "Say something. " * 8
_BASE_URL = re.compile(r"OPENAI_BASE_URL: (\S+)/v1")


@dataclass(frozen=True, slots=True)
class Stream:
    """How a stream went: seconds to its first token (None: there was none), and whether it came whole."""

    first_s: float | None
    whole: bool


async def main(options: argparse.Namespace) -> Report:
    """Run the rounds."""
    seats = options.streams + 64
    profile = Profile(0.0, 0.0, 0.0, options.step_ms / 1000, 0.0, 0.0, kv_tokens=1000 * seats, seats=seats)
    found: dict[str, list[Stream]] = {"bare engine": [], "gateway": []}
    with tempfile.TemporaryDirectory(prefix="tokenyard-bench-") as name:
        folder = Path(name)
        async with running_servers({"bare": profile}, 1.0, folder) as [bare], bench_cluster(MODEL, [MODEL]) as cluster:
            await cluster.start_scheduler()
            file = folder / "device.json"
            file.write_bytes(orjson.dumps(asdict(profile)))
            await cluster.start_workers(1, ["--engine", "simulated", "--profile", str(file)])
            async with _gateway(cluster, folder) as url:
                urls = {"bare engine": bare.url, "gateway": url}
                for name in urls:  # connections, caches
                    await _round(urls[name], 8, 0.1, options.tokens)
                for number in range(options.rounds):
                    for name in urls:
                        found[name] += await _round(urls[name], options.streams, options.ramp, options.tokens)
                        note(f"round {number + 1}: {name} done")
            server = await server_name(cluster.client.redis)
    rows: list[dict[str, Value]] = [_row(name, streams) for name, streams in found.items()]
    dropped = sum(not stream.whole for stream in found["gateway"])
    summary: dict[str, Value] = {"dropped": dropped, "added_ttft_median_ms": _median_ms(found)}
    title = f"First token of {options.streams:,} streaming chats at a time, a step each {options.step_ms:g} ms"
    return Report(title, rows, summary, server)


def _row(name: str, streams: list[Stream]) -> dict[str, Value]:
    times = [stream.first_s * 1e3 for stream in streams if stream.first_s is not None]
    if not times:
        raise BenchmarkError(f"{name}: no stream had a first token")
    row: dict[str, Value] = {"way": name, "streams": len(streams), "whole": sum(stream.whole for stream in streams)}
    return row | {f"ttft_p{share}_ms": percentile(times, share / 100) for share in (50, 90, 99)}


def _median_ms(found: dict[str, list[Stream]]) -> float:
    medians = {
        name: percentile([stream.first_s for stream in streams if stream.first_s is not None], 0.5)
        for name, streams in found.items()
    }
    return (medians["gateway"] - medians["bare engine"]) * 1e3


@asynccontextmanager
async def _gateway(cluster: BenchCluster, folder: Path) -> AsyncGenerator[str]:
    """A gateway as a process; gives its address."""
    words = [sys.executable, "-m", "tokenyard", "serve", "--port", "0", "--folder", str(folder / "shelves")]
    environment = {"TOKENYARD_REDIS_URL": cluster.redis_url, "NO_COLOR": "1"}
    program = Program("gateway", words, log_dir=folder, environment=environment)
    await program.start()
    try:
        yield await until_said(program, _address)
    finally:
        await program.stop()


def _address(log: str) -> str | None:
    match = _BASE_URL.search(log)
    return match[1] if match else None


async def _round(url: str, streams: int, ramp_s: float, tokens: int) -> list[Stream]:
    """Streams that begin one after another within ``ramp_s`` seconds."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:
        return await asyncio.gather(
            *(_stream(session, url, number * ramp_s / streams, tokens) for number in range(streams))
        )


async def _stream(session: aiohttp.ClientSession, url: str, after_s: float, tokens: int) -> Stream:
    await asyncio.sleep(after_s)
    body = {"model": MODEL, "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": tokens}
    body |= {"stream": True, "ignore_eos": True}
    begun, first, text, done = time.perf_counter(), None, "", False
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    done |= line.startswith(b"data: [DONE]")
                    continue
                for choice in orjson.loads(line[6:]).get("choices", []):
                    content = choice["delta"].get("content") or ""
                    first = first or (time.perf_counter() - begun if content else None)
                    text += content
    except (aiohttp.ClientError, TimeoutError):
        done = False
    return Stream(first, done and len(text.split()) == tokens)


def _options() -> argparse.Namespace:
    parser = options_parser("gateway", __doc__ or "")
    parser.add_argument("--streams", type=at_least(1), default=1000, help="chats at a time")
    parser.add_argument("--ramp", type=at_least(0.01), default=10.0, help="seconds in which they begin")
    parser.add_argument("--tokens", type=at_least(1), default=24, help="tokens of an answer")
    parser.add_argument("--step-ms", type=at_least(0.1), default=500.0, help="milliseconds of an engine's step")
    parser.add_argument("--rounds", type=at_least(1), default=2, help="rounds of each")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
