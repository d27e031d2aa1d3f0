"""What every command shares: settings, logging, and errors as one line with a non-zero exit."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from broker.concurrency import run_fast
from broker.connection import RedisError, address, translate
from broker.errors import TokenyardError, UsageError
from broker.settings import Settings, load_settings

#: Results go to standard output, everything about the way there to standard error.
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", help="Address of Redis [TOKENYARD_REDIS_URL]", show_default=False),
]
PoolName = Annotated[
    str | None,
    typer.Option("--pool", help="pool of workers that serve one model [TOKENYARD_POOL]", show_default=False),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65535,
        help="serve this process' Prometheus metrics at TOKENYARD_METRICS_HOST [TOKENYARD_METRICS_PORT]",
        show_default=False,
    ),
]


def fail(message: str, code: int) -> NoReturn:
    """Say what went wrong in one line and exit."""
    err.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", highlight=False)
    raise typer.Exit(code)


def run(main: Coroutine[Any, Any, int | None], settings: Settings, *, server: bool = False) -> None:
    """Run a command's coroutine; its errors and its number leave as exit code, never as a traceback.

    With ``server`` on the fastest event loop there is.
    """
    try:
        code = run_fast(main) if server else asyncio.run(main)
    except TokenyardError as e:
        fail(str(e), e.exit_code)
    except RedisError as e:
        where = address(settings.redis_url.get_secret_value()) if settings.redis_url else "the embedded server"
        error = translate(e, where)
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `tokenyard status | head`
        sys.stderr.close()
        raise typer.Exit(0) from None
    if code:
        raise typer.Exit(code)


def settings_of(**flags: Any) -> Settings:
    """The settings of a command; what is wrong with them is said in one line."""
    try:
        settings = load_settings(**flags)
    except UsageError as e:
        fail(str(e), e.exit_code)
    return settings


def redis_url_of(settings: Settings) -> str:
    """The address of a cluster that runs.

    Raises:
        UsageError: none is set.
    """
    if not settings.redis_url:
        raise UsageError("no Redis: set TOKENYARD_REDIS_URL or give --redis-url (`tokenyard run` brings its own)")
    return settings.redis_url.get_secret_value()


def log_to_stderr(settings: Settings) -> None:
    """Plain log lines, for processes that run long."""
    level = settings.log_level.upper()
    if level not in logging.getLevelNamesMapping():
        fail(f"setting log_level (TOKENYARD_LOG_LEVEL): {level} is none of DEBUG, INFO, WARNING and ERROR", 2)
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
