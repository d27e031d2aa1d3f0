"""Where things are kept that outlive a run."""

from __future__ import annotations

import os
from pathlib import Path


def model_cache() -> Path:
    """Prepared models: ``TOKENYARD_CACHE_DIR``, else a folder of the user's cache directory."""
    chosen = os.environ.get("TOKENYARD_CACHE_DIR")
    if chosen:
        return Path(chosen) / "models"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tokenyard" / "models"
