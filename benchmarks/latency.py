"""Time from submit to result at a steady, low rate, and what the processes use when there is nothing to do.

Client, server, scheduler and one worker whose engine takes no time, each a process of its own. Requests come on a
schedule of their own, whether earlier ones have come back or not; one long-lived batch, one reader.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Iterator

from benchmarks.cluster import INSTANT_ENGINE, BenchCluster, BenchmarkError, bench_cluster
from benchmarks.report import Report, Value, at_least, note, options_parser, percentile, run_benchmark, server_name
from benchmarks.requests import MODEL, make_requests
from broker.client import Client, new_batch_id

_LAST_RESULT_TIMEOUT_S = 30


class Stopwatch:
    """Submits single requests of one batch and takes the time until the reader has their results."""

    def __init__(self, client: Client, payload: int) -> None:
        self._client = client
        self._payload = payload
        self._batch = new_batch_id()
        self._begun: dict[str, float] = {}
        self._all_read = asyncio.Event()
        self.latencies: dict[str, float] = {}

    async def submit(self) -> None:
        """Send one request; the clock starts before the call."""
        number = len(self._begun)
        self._begun[str(number)] = time.perf_counter()
        self._all_read.clear()
        await self._client.submit(make_requests(range(number, number + 1), self._payload), self._batch)

    async def read(self) -> None:
        """Read results for ever.

        Raises:
            BenchmarkError: one failed, or came twice.
        """
        async for results in self._client.results(self._batch):
            now = time.perf_counter()
            for result in results:
                if not result.ok or result.custom_id in self.latencies:
                    raise BenchmarkError(f"request {result.custom_id} failed or came back twice")
                self.latencies[result.custom_id] = now - self._begun[result.custom_id]
            if len(self.latencies) == len(self._begun):
                self._all_read.set()

    async def until_all_read(self) -> None:
        """Wait for the results of all that was submitted.

        Raises:
            BenchmarkError: one did not come.
        """
        try:
            async with asyncio.timeout(_LAST_RESULT_TIMEOUT_S):
                await self._all_read.wait()
        except TimeoutError:
            missing = len(self._begun) - len(self.latencies)
            raise BenchmarkError(f"{missing} results did not come within {_LAST_RESULT_TIMEOUT_S} s") from None


def arrivals(rate: float, seconds: float, rng: random.Random, *, even: bool) -> Iterator[float]:
    """Times (seconds from the start) at which requests come: a Poisson process, or evenly spaced."""
    at = 0.0
    while at < seconds:
        yield at
        at += 1 / rate if even else rng.expovariate(rate)


async def main(options: argparse.Namespace) -> Report:
    """Warm up, measure, then stand idle."""
    async with bench_cluster(MODEL, [MODEL]) as cluster:
        await cluster.start_scheduler()
        await cluster.start_workers(1, INSTANT_ENGINE)
        watch = Stopwatch(cluster.client, options.payload)
        await watch.submit()  # a reader asks for a batch that is there
        reading = asyncio.ensure_future(watch.read())
        try:
            rng = random.Random(options.seed)
            await _offer(watch, list(arrivals(options.rate, options.warm_up, rng, even=options.even)), reading)
            warm_up = set(watch.latencies)
            times = list(arrivals(options.rate, options.seconds, rng, even=options.even))
            late = await _offer(watch, times, reading)
            note(f"{len(times)} requests done; now {options.idle:.0f} s of nothing")
            idle = await _idle_percent(cluster, options.idle)
        finally:
            reading.cancel()
        milliseconds = [value * 1e3 for name, value in watch.latencies.items() if name not in warm_up]
        row: dict[str, Value] = {
            "requests": len(milliseconds),
            "per_s": len(milliseconds) / options.seconds,
            **{f"p{share}_ms": percentile(milliseconds, share / 100) for share in (50, 90, 99)},
            "max_ms": max(milliseconds),
            "late_p99_ms": percentile(late, 0.99) * 1e3,
            **{f"idle_{role}_%": percent for role, percent in idle.items()},
        }
        summary: dict[str, Value] = {"p50_ms": row["p50_ms"], "p99_ms": row["p99_ms"]}
        if idle:
            summary["idle_cpu_percent"] = sum(idle.values())
        title = f"Submit to result at {options.rate:g} requests/s, and CPU when idle (% of one core)"
        return Report(title, [row], summary, await server_name(cluster.client.redis))


async def _offer(watch: Stopwatch, times: list[float], reading: asyncio.Future[None]) -> list[float]:
    """Submit a request at each of these times, then wait for all results; returns how late (s) each call began."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    late: list[float] = []
    submits: list[asyncio.Future[None]] = []
    for at in times:
        await asyncio.sleep(begin + at - loop.time())
        late.append(loop.time() - begin - at)
        submits.append(asyncio.ensure_future(watch.submit()))
    await asyncio.gather(*submits)
    done = asyncio.ensure_future(watch.until_all_read())
    await asyncio.wait([done, reading], return_when=asyncio.FIRST_COMPLETED)
    if reading.done():
        done.cancel()
        reading.result()
    await done
    return late


async def _idle_percent(cluster: BenchCluster, seconds: float) -> dict[str, float]:
    """CPU of each role while nothing is submitted, the reader still waiting, in percent of one core."""
    if not seconds:
        return {}
    before, begin = cluster.cpu_seconds(), time.perf_counter()
    await asyncio.sleep(seconds)
    after, elapsed = cluster.cpu_seconds(), time.perf_counter() - begin
    return {role: (after[role] - before[role]) / elapsed * 100 for role in before}


def _options() -> argparse.Namespace:
    parser = options_parser("latency", __doc__ or "")
    parser.add_argument("--rate", type=at_least(0.01), default=100, help="requests a second")
    parser.add_argument("--seconds", type=at_least(0.01), default=30, help="how long")
    parser.add_argument("--warm-up", type=at_least(0.0), default=2, help="seconds before that, which do not count")
    parser.add_argument("--even", action="store_true", help="evenly spaced arrivals instead of a Poisson process")
    parser.add_argument("--payload", type=at_least(1), default=1024, help="bytes of a request's body")
    parser.add_argument("--idle", type=at_least(0.0), default=20, help="seconds of idling; 0: leave out")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    run_benchmark(main(chosen), chosen)
