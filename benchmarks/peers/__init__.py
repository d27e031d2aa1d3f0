"""Other job queues on the same server, for comparison. Each runs in an environment of its own.

``make bench-peers-setup`` makes the environments. This file is imported there too, so it needs nothing installed.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
PEERS = ("arq", "dramatiq", "saq", "taskiq")


class PeerError(RuntimeError):
    """A peer could not be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What one peer reached.

    Attributes:
        name: one of ``PEERS``.
        jobs_per_s: jobs a second, from the first enqueue to the last result seen.
        seconds: the time that took.
    """

    name: str
    jobs_per_s: float
    seconds: float


def run_peer(
    name: str, redis_url: str, jobs: int = 20_000, payload_bytes: int = 1024, timeout_s: float = 300
) -> PeerResult:
    """Run jobs that do nothing through a peer with two worker processes and tuned settings.

    Uses database 15 of the server, which must be empty, and leaves it empty.

    Raises:
        PeerError: it is not installed, it failed, or it took longer than ``timeout_s`` seconds.
    """
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        raise PeerError(f"{name} is not installed: run `make bench-peers-setup`")
    command = [str(python), "-m", f"benchmarks.peers.{name}", "--redis", redis_url, "--json"]
    command += ["--jobs", str(jobs), "--payload", str(payload_bytes)]
    # SIGTERM lets the harness stop its workers and empty the database; subprocess.run's timeout would send SIGKILL.
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise PeerError(f"{name} did not finish {jobs} jobs within {timeout_s:.0f} s") from None
    if process.returncode != 0:
        last = errors.strip().rpartition("\n")[2] or f"exit status {process.returncode}"
        raise PeerError(f"{name} failed: {last}")
    figures = json.loads(output)
    return PeerResult(name=name, jobs_per_s=figures["jobs_per_s"], seconds=figures["seconds"])
