"""Small machines, profiles and a model for tests of the planner."""

from __future__ import annotations

from broker.throughput import Profile
from planner.configurations import Space
from planner.estimate import Estimator, Measured
from planner.inventory import DeviceGroup, Machine
from planner.model_shape import ModelShape

GIB = 1 << 30
#: 2 GiB of weights; 128 KiB of KV cache for each token.
SMALL = ModelShape("small", 1 << 30, 16, 2048, 16, 16, 128, 32_000, 32_768)


def profile(slower: float = 1.0, kv_tokens: int = 50_000, seats: int = 128) -> Profile:
    """A profile of an engine on one device."""
    times = (0.01, 5e-5, 2e-9, 0.01, 4e-5, 8e-8)
    return Profile(*(slower * t for t in times), kv_tokens=kv_tokens, seats=seats)


def measured(device: str, units: int = 1, slower: float = 1.0, *, dtype: str = "", model: str = "small") -> Measured:
    """A measurement of the small model."""
    return Measured(device, model, units, dtype, profile(slower), 4096)


def machine(name: str, kind: str = "X1", count: int = 2, gib: float = 12.0, **more: object) -> Machine:
    """A machine with devices of one kind."""
    return Machine(name, (DeviceGroup(kind, count, int(gib * GIB)),), **more)  # type: ignore[arg-type]


def space(**more: object) -> Space:
    """What may be chosen: by default one number of seats and 16 bit."""
    chosen: dict[str, object] = {"shape": SMALL, "dtypes": ("bfloat16",), "seats": (128,), **more}
    return Space(**chosen)  # type: ignore[arg-type]


def estimator(*of: Measured) -> Estimator:
    """Estimates for the small model."""
    return Estimator(SMALL, of or (measured("X1"), measured("X1", 2, 0.6)))
