"""What every command pays for, whatever it does: the modules that are imported with the command line."""

from __future__ import annotations

import subprocess
import sys

from broker.policies import POLICIES
from tokenyard.cli import processes

_HEAVY = ("numpy", "scipy", "highspy", "torch", "vllm", "transformers", "fastapi", "ray")


def test_no_command_waits_for_what_others_need() -> None:
    script = f"import sys, tokenyard.cli; print([name for name in {_HEAVY} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_what_an_engine_starts_does_not_wait_for_the_commands() -> None:
    script = "import sys, tokenyard.__main__; print('tokenyard.cli' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_the_help_names_the_policies_there_are() -> None:
    assert ", ".join(sorted(POLICIES)) == processes.POLICY_NAMES
