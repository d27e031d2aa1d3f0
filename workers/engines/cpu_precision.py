"""Which precision this machine's CPU computes in hardware."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

#: Instructions for bfloat16: of x86-64 (AVX-512, AMX, AVX2 with VNNI) and of 64-bit Arm. PyTorch's kernels need one of
#: them; without, they compute bfloat16 in scalar code, several times slower than float32.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
_FLAGS = re.compile(r"^(?:flags|Features)\s*:(?P<flags>.*)$", re.MULTILINE)
_CPUINFO = Path("/proc/cpuinfo")


def computes_bfloat16(flags: Collection[str]) -> bool:
    """Whether a CPU of these flags, as Linux names them, has instructions for bfloat16. No flags: nothing is known,
    and it is taken to have them."""
    return not flags or not _BFLOAT16.isdisjoint(flags)


def is_slow(dtype: str, *, bfloat16: bool) -> bool:
    """Whether a CPU, with such instructions or without, computes a precision slower than float32."""
    return dtype in ("bfloat16", "float16") and not bfloat16


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The flags of the first core in the text of ``/proc/cpuinfo``; none where it names none."""
    found = _FLAGS.search(cpuinfo)
    return frozenset(found["flags"].split()) if found else frozenset()


def cpu_has_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16; where it does not say, it is taken to."""
    try:
        return computes_bfloat16(cpu_flags(_CPUINFO.read_text()))
    except OSError:
        return True
