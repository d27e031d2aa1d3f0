"""The command line, the Python client and the one-machine cluster: composes queue and workers, holds no policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenyard.client import AsyncClient as AsyncClient
    from tokenyard.client import Client as Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    """The clients, loaded when they are asked for: the command line does without."""
    if name not in ("AsyncClient", "Client"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tokenyard import client

    return getattr(client, name)
