"""The command ``serve``: the OpenAI-compatible gateway."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.concurrency import on_stop_signals
from broker.errors import UsageError
from broker.settings import Settings
from tokenyard.cli.runtime import RedisUrl, err, log_to_stderr, redis_url_of, run, settings_of

if TYPE_CHECKING:
    from tokenyard.gateway.api_keys import ApiKeys

_KEYS = "File of API keys, 'TENANT KEY' a line [TOKENYARD_API_KEYS_FILE]; without one, only this machine may call."
_FOLDER = "Where uploaded and output files lie; a folder 'gateway' of TOKENYARD_STATE_DIR otherwise."


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(serve)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    api_keys: Annotated[Path | None, typer.Option(help=_KEYS, show_default=False)] = None,
    folder: Annotated[Path | None, typer.Option(help=_FOLDER, show_default=False)] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Serve the OpenAI API: files, batches, chat, completions, embeddings and models.

    The official client works unchanged: OPENAI_BASE_URL=http://HOST:PORT/v1.
    """
    settings = settings_of(redis_url=redis_url, api_keys_file=api_keys)
    log_to_stderr(settings)
    run(_serve(settings, host, port, folder or settings.state_dir / "gateway"), settings, server=True)


async def _serve(settings: Settings, host: str, port: int, folder: Path) -> None:
    from tokenyard.garbage import collect_rarely
    from tokenyard.gateway.app import gateway
    from tokenyard.gateway.server import listen, served

    url = redis_url_of(settings)
    keys = _keys(settings, host)
    stop = asyncio.Event()
    on_stop_signals(lambda _name: stop.set())
    async with gateway(url, settings, keys, folder) as app:
        listener = listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        err.print(f"OPENAI_BASE_URL: http://{shown}:{listener.getsockname()[1]}/v1", highlight=False)
        err.print(f"live page: http://{shown}:{listener.getsockname()[1]}/live", highlight=False)
        collect_rarely()
        async with served(app, listener) as serving:
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()


def _keys(settings: Settings, host: str) -> ApiKeys:
    """The API keys; without a file, whoever is on this machine may call, and is the tenant of the settings.

    Raises:
        UsageError: others could call without a key.
    """
    from tokenyard.gateway.api_keys import ApiKeys, read_keys

    if settings.api_keys_file is not None:
        return read_keys(settings.api_keys_file)
    if not _is_loopback(host):
        raise UsageError(f"whoever reaches {host} could call: give --api-keys FILE, or listen on 127.0.0.1")
    return ApiKeys({}, anybody=settings.tenant)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
