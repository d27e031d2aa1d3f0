"""dramatiq with Redis: lists moved by a Lua script, worker threads; results as lists of one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import orjson
import redis

THREADS = 16  # by default 8
# Messages fetched ahead, by default twice the threads. dramatiq reads it when it is imported.
os.environ.setdefault("dramatiq_queue_prefetch", "200")

import dramatiq  # noqa: E402
from dramatiq.brokers.redis import RedisBroker  # noqa: E402
from dramatiq.results import Results  # noqa: E402
from dramatiq.results.backends import RedisBackend  # noqa: E402

from benchmarks.peers.harness import Peer, main  # noqa: E402

NAMESPACE = "results"


class OrjsonEncoder(dramatiq.Encoder):
    def encode(self, data: dict) -> bytes:
        return orjson.dumps(data)

    def decode(self, data: bytes) -> dict:
        return orjson.loads(data)


def noop(payload: str) -> int:
    return len(payload)


def actor(url: str) -> dramatiq.Actor:
    dramatiq.set_encoder(OrjsonEncoder())
    broker = RedisBroker(url=url)
    broker.add_middleware(Results(backend=RedisBackend(url=url, namespace=NAMESPACE, use_namespace_prefix_keys=True)))
    dramatiq.set_broker(broker)
    return dramatiq.actor(noop, broker=broker, store_results=True)


def work(url: str, ready: Callable[[], None]) -> None:
    worker = dramatiq.Worker(actor(url).broker, worker_threads=THREADS)
    worker.start()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ready()
    ended.wait()
    worker.stop()


def submit(url: str, jobs: int, payload: str) -> list[str]:
    own = actor(url)
    return [own.send(payload).message_id for _ in range(jobs)]


def read(client: redis.Redis, ids: list[str]) -> list[bytes | None]:
    pipeline = client.pipeline(transaction=False)
    for job in ids:
        pipeline.lindex(f"{NAMESPACE}:default:noop:{job}", 0)
    return pipeline.execute()


if __name__ == "__main__":
    main(Peer("dramatiq", work, submit, read))
