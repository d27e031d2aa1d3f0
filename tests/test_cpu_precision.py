"""Which precision a CPU computes fastest, by what it says of itself, and what the demo makes of it."""

from __future__ import annotations

import pytest

from tokenyard.local_cluster import WorkerSpec, demo_workers
from workers.engines.cpu_precision import cpu_flags, fast_dtype

_ZEN_3 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse sse2 avx avx2 fma\nbugs\t\t: sysret_ss_attrs\n"
_SAPPHIRE = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
_ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp bf16 i8mm\n"


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        (_ZEN_3, False),
        (_SAPPHIRE, True),
        (_ARM, True),
        (_ARM.replace("bf16 ", ""), False),
        (_ZEN_3.replace("avx2", "avx512f avx512bw"), False),
        ("processor\t: 0\n", True),
        ("", True),
    ],
)
def test_a_cpu_has_bfloat16_where_its_flags_say_so(cpuinfo: str, has: bool) -> None:
    assert fast_dtype(cpu_flags(cpuinfo)) == ("bfloat16" if has else "float32")


def test_flags_are_those_of_the_first_core() -> None:
    assert cpu_flags(_ZEN_3 + _SAPPHIRE) == {"fpu", "sse", "sse2", "avx", "avx2", "fma"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_demo_has_two_unequal_workers_whatever_the_cpu_computes_fastest(dtype: str) -> None:
    fast, slow = (_options_of(spec) for spec in demo_workers([0, 1], dtype))
    assert (fast["--cores"], slow["--cores"]) == ("0", "1")
    assert (fast["--dtype"], slow["--dtype"]) == (dtype, "float32")
    assert int(fast["--seats"]) > int(slow["--seats"])
    assert float(fast["--kv-gib"]) > float(slow["--kv-gib"])


def _options_of(spec: WorkerSpec) -> dict[str, str]:
    words = [word for word in spec.options if word != "--eager"]
    return dict(zip(words[::2], words[1::2], strict=True))
