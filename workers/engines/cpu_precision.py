"""Which precision this machine's CPU computes fastest."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

#: Instructions for bfloat16: of x86-64 (AVX-512, AMX, AVX2 with VNNI) and of 64-bit Arm. PyTorch's kernels need one of
#: them; without, they compute bfloat16 in scalar code, several times slower than float32.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
_FLAGS = re.compile(r"^(?:flags|Features)\s*:(?P<flags>.*)$", re.MULTILINE)
_CPUINFO = Path("/proc/cpuinfo")


def fast_dtype(flags: Collection[str]) -> str:
    """The precision that a CPU of these flags, as Linux names them, computes fastest: ``bfloat16`` where it has
    instructions for that or says nothing of itself, else ``float32``."""
    return "float32" if flags and _BFLOAT16.isdisjoint(flags) else "bfloat16"


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The flags of the first core in the text of ``/proc/cpuinfo``; none where it names none."""
    found = _FLAGS.search(cpuinfo)
    return frozenset(found["flags"].split()) if found else frozenset()


def cpu_dtype() -> str:
    """The precision that this machine's CPU computes fastest, see ``fast_dtype``."""
    try:
        return fast_dtype(cpu_flags(_CPUINFO.read_text()))
    except OSError:
        return fast_dtype(())
