"""Runs one peer: two workers, one submitter, jobs that do nothing. Knows nothing of Tokenyard, nor of the peers.

This file and the peers' files run in an environment of the peer's own (``make bench-peers-setup``).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import redis

DATABASE = 15  # arq's key names cannot be changed, so every peer gets this database for itself
WARM_UP_JOBS = 200
READ_CHUNK = 500
READ_PAUSE_S = 0.01


@dataclass(frozen=True)
class Peer:
    """One job queue.

    Attributes:
        module: name of the peer's module in this package.
        work: run one worker on the server at a URL until the process is told to end; calls the function it is
            given when it listens.
        submit: enqueue so many jobs with that payload and return their ids, in order.
        read: the stored results of some ids, None where there is none yet. One call to the server for all of
            them: cheaper than what any of the peers' own clients does, so that none is slowed by being watched.
    """

    module: str
    work: Callable[[str, Callable[[], None]], None]
    submit: Callable[[str, int, str], list[str]]
    read: Callable[[redis.Redis, list[str]], list[bytes | None]]


def main(peer: Peer) -> None:
    """The command line of every peer's module."""
    parser = argparse.ArgumentParser(description=f"Jobs a second through {peer.module}, end to end.")
    parser.add_argument("--redis", required=True, help=f"server; its database {DATABASE} must be empty")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--payload", type=int, default=1024, help="bytes a job")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        peer.work(options.redis, lambda: print("ready", flush=True))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the workers and the keys go too
    seconds = measure(peer, own_database(options.redis), options.jobs, options.payload, options.workers)
    figures = {"peer": peer.module, "jobs": options.jobs, "seconds": seconds, "jobs_per_s": options.jobs / seconds}
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"{peer.module}: {figures['jobs_per_s']:.0f} jobs/s ({options.jobs} jobs in {seconds:.2f} s)")


def own_database(url: str) -> str:
    """The same server's database for peers."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.netloc}{parts.path}?db={DATABASE}"
    return f"{parts.scheme}://{parts.netloc}/{DATABASE}"


def measure(peer: Peer, url: str, jobs: int, payload_bytes: int, workers: int) -> float:
    """Seconds from the first enqueue to the last result seen, with workers that are up and warm."""
    client = redis.Redis.from_url(url)
    if client.dbsize():
        sys.exit(f"Database {DATABASE} of the server is not empty: it would be wiped, so empty it first")
    try:
        with running_workers(peer, url, workers):
            run(peer, client, url, WARM_UP_JOBS, payload_bytes)
            return run(peer, client, url, jobs, payload_bytes)
    finally:
        client.flushdb()
        client.close()


def run(peer: Peer, client: redis.Redis, url: str, jobs: int, payload_bytes: int) -> float:
    """Submit and wait for every result; returns the seconds it took."""
    begin = time.perf_counter()
    waiting = peer.submit(url, jobs, "x" * payload_bytes)
    while waiting:
        # Jobs start in order, so the results of the first ones come first.
        chunk = waiting[:READ_CHUNK]
        results = peer.read(client, chunk)
        missing = [job for job, result in zip(chunk, results, strict=True) if result is None]
        waiting[:READ_CHUNK] = missing
        if missing:
            time.sleep(READ_PAUSE_S)
    return time.perf_counter() - begin


@contextmanager
def running_workers(peer: Peer, url: str, count: int) -> Generator[None]:
    """Worker processes that have said they listen."""
    command = [sys.executable, "-m", f"benchmarks.peers.{peer.module}", "--worker", "--redis", url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                sys.exit(f"A worker of {peer.module} did not start")
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
