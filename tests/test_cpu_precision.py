"""Which precision a CPU computes in hardware, by what it says of itself."""

from __future__ import annotations

import pytest

from workers.engines.cpu_precision import computes_bfloat16, cpu_flags, is_slow

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
    assert computes_bfloat16(cpu_flags(cpuinfo)) == has


def test_flags_are_those_of_the_first_core() -> None:
    assert cpu_flags(_ZEN_3 + _SAPPHIRE) == {"fpu", "sse", "sse2", "avx", "avx2", "fma"}


def test_without_instructions_for_it_16_bit_is_slow() -> None:
    assert is_slow("bfloat16", bfloat16=False)
    assert is_slow("float16", bfloat16=False)
    assert not is_slow("float32", bfloat16=False)
    assert not is_slow("bfloat16", bfloat16=True)
