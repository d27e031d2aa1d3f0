"""``--metrics-port``: a process' own metrics for Prometheus, on a port of its own."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.registry import Collector

from broker.settings import Settings

log = logging.getLogger(__name__)


def process_registry(*collectors: Collector) -> CollectorRegistry:
    """What a process tells: memory, CPU time and files of its own, and what is given."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    for collector in collectors:
        registry.register(collector)
    return registry


@contextmanager
def metrics_served(settings: Settings, *collectors: Collector) -> Generator[None]:
    """Serve a process' metrics for the length of the block, where the settings name a port.

    A port that is taken is told of and changes nothing: no job waits for metrics. The page is made in a thread.
    """
    if not settings.metrics_port:
        yield
        return
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host, process_registry(*collectors))
    except OSError as error:
        place = f"{settings.metrics_host}:{settings.metrics_port}"
        log.warning("no metrics: cannot listen on %s (%s); choose another --metrics-port", place, error.strerror)
        yield
        return
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
