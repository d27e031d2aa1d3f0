"""A Valkey server of a test's own, with settings of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from child_processes import bound
from cluster_fixtures import PATIENCE_S

from tokenyard.embedded_server import find_binary


@contextmanager
def bare_server(*words: str) -> Generator[str]:
    """Run one with these words of configuration, on a socket, without persistence otherwise; gives its address."""
    with TemporaryDirectory(prefix="ty") as folder:  # pytest's own folders are too long for a socket's path
        socket = Path(folder) / "s"
        command = bound(find_binary(), "--port", "0", "--unixsocket", socket, "--dir", folder, "--save", "", *words)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if "eady to accept connections" in line:
                        break
                assert process.poll() is None
                yield f"unix://{socket}?db=0"
            finally:
                process.kill()
                process.wait(PATIENCE_S)
