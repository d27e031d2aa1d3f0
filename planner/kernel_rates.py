"""What a device does at best, from times of single kernels that others measured. Pure.

A matrix product of few rows reads its matrix and computes little: its time tells the memory's pace. One of many rows
computes: its time tells the operations a second. Both come nearer to what an engine sees than a data sheet does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

#: Sizes of the matrices of most models' layers; smaller ones fit caches, and show what a launch takes.
_LEAST_SIDE, _LONGEST_SIDE = 2048, 32_768
#: Rows of a product that is bound by memory, at most; and of one that is bound by computing, from and to.
_FEW_ROWS = 32
_MANY_ROWS, _MOST_ROWS = 1024, 8192
#: Precisions whose products are counted, and the bytes of a number.
_DTYPES, _BYTES = ("bfloat16", "float16"), 2
#: Fewer products of a kind tell nothing.
_LEAST = 3
#: Engines join matrices and pad them to sizes that suit a device: of all products the better ones are like theirs.
_QUANTILE = 0.9


class KernelTime(NamedTuple):
    """A measured product of an m x k and a k x n matrix.

    Attributes:
        device: name of the device.
        dtype: precision.
        m: rows: tokens of a step.
        n: columns of the weights.
        k: rows of the weights.
        seconds: what it took.
    """

    device: str
    dtype: str
    m: int
    n: int
    k: int
    seconds: float


class KernelRates(NamedTuple):
    """What a device does at best.

    Attributes:
        device: its name.
        flops: dense 16-bit operations a second.
        bandwidth: bytes a second from its memory.
        source: who measured, in a few words.
    """

    device: str
    flops: float
    bandwidth: float
    source: str = ""


def kernel_rates(times: Iterable[KernelTime], source: str = "") -> list[KernelRates]:
    """The rates of each device of which enough was measured: what the better of its products reach."""
    flops: dict[str, list[float]] = {}
    bandwidth: dict[str, list[float]] = {}
    for time in times:
        sides = (time.n, time.k)
        if time.dtype not in _DTYPES or not time.seconds > 0 or min(sides) < _LEAST_SIDE or max(sides) > _LONGEST_SIDE:
            continue
        if time.m <= _FEW_ROWS:
            moved = _BYTES * (time.n * time.k + time.m * (time.n + time.k))
            bandwidth.setdefault(time.device, []).append(moved / time.seconds)
        elif _MANY_ROWS <= time.m <= _MOST_ROWS:
            flops.setdefault(time.device, []).append(2.0 * time.m * time.n * time.k / time.seconds)
    enough = [device for device in flops if min(len(flops[device]), len(bandwidth.get(device, ()))) >= _LEAST]
    return [KernelRates(device, _good(flops[device]), _good(bandwidth[device]), source) for device in enough]


def _good(rates: Sequence[float]) -> float:
    return float(np.quantile(rates, _QUANTILE))
