"""The command ``traces``: what jobs went through, for an OpenTelemetry collector."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated

import typer

from broker.client import connect_client
from broker.concurrency import on_stop_signals, run_together
from broker.errors import UsageError
from broker.settings import Settings
from tokenyard.cli.runtime import RedisUrl, log_to_stderr, redis_url_of, run, settings_of

_ENDPOINT = "OTLP address, http://HOST:4318/v1/traces [TOKENYARD_TRACES_ENDPOINT]; OTEL_EXPORTER_OTLP_… otherwise."
_SHARE = "Share of the jobs that are traced, 0 to 1 [TOKENYARD_TRACES_SHARE]."


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(traces)


def traces(
    endpoint: Annotated[str | None, typer.Option(help=_ENDPOINT, show_default=False)] = None,
    share: Annotated[float | None, typer.Option(help=_SHARE, show_default=False)] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Send a trace of each job that ends to an OpenTelemetry collector (OTLP over HTTP). Run one of it.

    Needs the extra: pip install 'tokenyard[otel]'.
    """
    settings = settings_of(redis_url=redis_url, traces_endpoint=endpoint, traces_share=share)
    log_to_stderr(settings)
    run(_trace(settings), settings)


async def _trace(settings: Settings) -> None:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from tokenyard.tracing.export import TraceWriter
    except ImportError:
        raise UsageError("traces need OpenTelemetry's SDK: pip install 'tokenyard[otel]'") from None
    from tokenyard.tracing.following import JobFollower
    from tokenyard.tracing.job_spans import is_sampled

    endpoint = settings.traces_endpoint
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"TOKENYARD_TRACES_ENDPOINT {endpoint}: give an address such as http://HOST:4318/v1/traces")
    stop = asyncio.Event()
    on_stop_signals(lambda _name: stop.set())
    async with connect_client(redis_url_of(settings)) as client:
        writer = TraceWriter(OTLPSpanExporter(endpoint=endpoint or None))
        try:
            wanted = partial(is_sampled, share=settings.traces_share)
            await run_together(JobFollower(client, wanted, writer.write).run(), stop.wait())
        finally:
            await asyncio.to_thread(writer.close)
