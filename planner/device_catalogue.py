"""Public specifications of devices, for a first and rough estimate of one that nobody has measured. Pure.

Sources: NVIDIA's data sheets of A100 (80GB SXM and PCIe, 40GB), A10, A30, A40, H100 (SXM5, PCIe, NVL), H200, B200 (as
an
eighth of HGX B200), L4, L40S, T4, V100 and the RTX PRO 6000 Blackwell; the Ada and Blackwell architecture papers for
RTX 4090 and RTX 5090. FLOP/s are the tensor cores' at 16 bit with 32-bit accumulation, without sparsity; memory is what
nvidia-smi shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_GB, _TERA = 10**9, 10**12
_MIB = 1 << 20
#: Bytes/s of a device's link in one direction: PCIe 3.0, 4.0 and 5.0 with 16 lanes, by their standards.
_PCIE3, _PCIE4, _PCIE5 = 16, 32, 64


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device as its maker describes it.

    Attributes:
        name: its name.
        memory_bytes: its own memory.
        bandwidth: bytes a second from that memory.
        flops: dense 16-bit operations a second.
        link: bytes a second to its neighbours over NVLink, one direction; 0 where it has none.
        pcie: bytes a second over PCIe, one direction.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    flops: float
    link: float
    pcie: float


def _spec(name: str, mib: int, gb_per_s: float, tflops: float, link: float, pcie: float) -> DeviceSpec:
    return DeviceSpec(name, mib * _MIB, gb_per_s * _GB, tflops * _TERA, link * _GB, pcie * _GB)


_SPECS = (
    _spec("A100-SXM4-80GB", 81_920, 2039, 312, 300, _PCIE4),
    _spec("A100-SXM4-40GB", 40_960, 1555, 312, 300, _PCIE4),
    _spec("A100-80GB-PCIe", 81_920, 1935, 312, 0, _PCIE4),
    _spec("A100-PCIE-40GB", 40_960, 1555, 312, 0, _PCIE4),
    _spec("A10", 23_028, 600, 125, 0, _PCIE4),
    _spec("A30", 24_576, 933, 165, 0, _PCIE4),
    _spec("A40", 46_068, 696, 149.7, 0, _PCIE4),
    _spec("H100-SXM-80GB", 81_559, 3350, 989, 450, _PCIE5),
    _spec("H100-PCIe", 81_559, 2000, 756, 0, _PCIE5),
    _spec("H100-NVL", 95_830, 3900, 835, 300, _PCIE5),
    _spec("H200", 143_771, 4800, 989, 450, _PCIE5),
    _spec("B200", 183_359, 7700, 2250, 900, _PCIE5),
    _spec("L4", 23_034, 300, 121, 0, _PCIE4),
    _spec("L40S", 46_068, 864, 362, 0, _PCIE4),
    _spec("T4", 15_360, 300, 65, 0, _PCIE3),
    _spec("V100-SXM2-16GB", 16_384, 900, 125, 150, _PCIE3),
    _spec("V100-SXM2-32GB", 32_768, 900, 125, 150, _PCIE3),
    _spec("RTX-4090", 24_564, 1008, 165.2, 0, _PCIE4),
    _spec("RTX-5090", 32_607, 1792, 209.5, 0, _PCIE5),
    _spec("RTX-PRO-6000", 97_887, 1792, 503.8, 0, _PCIE5),
)

#: How nvidia-smi calls what people call otherwise.
_ALSO = {"h100-80gb-hbm3": "h100-sxm-80gb"}
_MAKER = re.compile(r"^(nvidia|geforce|tesla)-")


@lru_cache(maxsize=4096)
def words(device: str) -> str:
    """A device's name for comparing: lower case, one kind of mark, without its maker."""
    name = re.sub(r"[\s_-]+", "-", device.strip()).casefold()
    while found := _MAKER.match(name):
        name = name[found.end() :]
    return _ALSO.get(name, name)


@lru_cache(maxsize=4096)
def find_spec(device: str) -> DeviceSpec | None:
    """The specification of a device by its name, as vLLM or nvidia-smi or a person calls it; None where it is not
    there.

    ``NVIDIA L40S``, ``L4-24GB(GCP)`` and ``NVIDIA GeForce RTX 4090`` are found; a name that could be several
    (``A100``) is the first of them.
    """
    name = words(device)
    exact = [spec for spec in _SPECS if words(spec.name) == name]
    longer = [spec for spec in _SPECS if begins(name, words(spec.name))]
    shorter = [spec for spec in _SPECS if begins(words(spec.name), name)]
    found = exact or sorted(longer, key=lambda spec: -len(spec.name)) or shorter
    return found[0] if found else None


def begins(name: str, start: str) -> bool:
    """Whether a name begins so, up to a mark: L4 is no L40S."""
    return bool(start) and name.startswith(start) and (len(name) == len(start) or not name[len(start)].isalnum())
