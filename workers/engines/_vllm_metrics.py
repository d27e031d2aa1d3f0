"""vLLM's Prometheus metrics: the few that say how loaded a server is, read and written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from workers.engines.base import Load

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USAGE = "vllm:kv_cache_usage_perc"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
OUTPUT_TOKENS = "vllm:generation_tokens_total"
CACHE_CONFIG = "vllm:cache_config_info"
STEPS = "vllm:iteration_tokens_total_count"  # a histogram of the tokens of each step
_NAMES = (STEPS, RUNNING, WAITING, KV_USAGE, PROMPT_TOKENS, OUTPUT_TOKENS, CACHE_CONFIG)


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """What a vLLM server says of itself, all its engines (data parallel) together.

    Attributes:
        running: requests in the batch.
        waiting: requests that wait for a place in it.
        kv_tokens: tokens the KV cache holds; 0 where the server does not say.
        kv_tokens_used: tokens it holds now.
        prompt_tokens: prompt tokens processed since the server started.
        output_tokens: tokens generated since the server started.
        steps: steps done since the server started; 0 where it does not say.
    """

    running: int
    waiting: int
    kv_tokens: int
    kv_tokens_used: int
    prompt_tokens: int
    output_tokens: int
    steps: int = 0


def read_metrics(text: str) -> ServerMetrics | None:
    """The load in a ``/metrics`` page; None where it is not vLLM's.

    Raises:
        ValueError: the page is not in Prometheus' text format.
    """
    # A page is mostly histograms: parsing the wanted lines alone keeps a poll cheap.
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_NAMES))
    sums: dict[str, float] = defaultdict(float)
    usages: list[float] = []
    kv_tokens = 0
    for family in text_string_to_metric_families(wanted + "\n"):
        for sample in family.samples:
            sums[sample.name] += sample.value
            if sample.name == KV_USAGE:
                usages.append(sample.value)
            elif sample.name == CACHE_CONFIG:
                kv_tokens += _cache_tokens(sample.labels)
    if RUNNING not in sums:
        return None
    usage = sum(usages) / len(usages) if usages else 0.0
    return ServerMetrics(
        running=int(sums[RUNNING]),
        waiting=int(sums[WAITING]),
        kv_tokens=kv_tokens,
        kv_tokens_used=round(usage * kv_tokens),
        prompt_tokens=int(sums[PROMPT_TOKENS]),
        output_tokens=int(sums[OUTPUT_TOKENS]),
        steps=int(sums[STEPS]),
    )


def _cache_tokens(labels: Mapping[str, str]) -> int:
    block_size, blocks = labels.get("block_size", ""), labels.get("num_gpu_blocks", "")
    return int(block_size) * int(blocks) if block_size.isdigit() and blocks.isdigit() else 0


class LoadCollector(Collector):
    """An engine's load under the names vLLM gives its own."""

    def __init__(self, load: Callable[[], Load], model: str, kv_tokens: int, block_tokens: int) -> None:
        self._load = load
        self._labels = {"engine": "0", "model_name": model}
        self._kv_tokens = kv_tokens
        self._block_tokens = block_tokens

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        load = self._load()
        yield self._gauge(RUNNING, "Requests in the batch.", load.running)
        yield self._gauge(WAITING, "Requests waiting to be processed.", load.waiting)
        yield self._gauge(KV_USAGE, "Used share of the KV cache: 1 is all.", load.kv_tokens_used / self._kv_tokens)
        yield self._counter(PROMPT_TOKENS, "Prefill tokens processed.", load.prompt_tokens_total)
        yield self._counter(OUTPUT_TOKENS, "Generation tokens processed.", load.output_tokens_total)
        blocks = str(self._kv_tokens // self._block_tokens)
        cache = {"engine": "0", "block_size": str(self._block_tokens), "num_gpu_blocks": blocks}
        info = GaugeMetricFamily(CACHE_CONFIG, "Information of the KV cache.", labels=list(cache))
        info.add_metric(list(cache.values()), 1)
        yield info

    def page(self) -> bytes:
        """The metrics as a ``/metrics`` page."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name.removesuffix("_total"), text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family
