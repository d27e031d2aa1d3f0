"""Times of a device by its public specification, or by what its kernels do: a first and rough estimate. Pure.

Weights and KV cache are read at the memory's pace, tokens computed at the tensor cores' (Williams, Waterman and
Patterson,
2009). A token takes 2 operations a weight; causal attention over a prompt of p tokens takes
``2 * layers * heads * head size * p^2``.
"""

from __future__ import annotations

from planner.device_catalogue import DeviceSpec
from planner.kernel_rates import KernelRates
from planner.model_shape import DTYPE_BYTES, ModelShape
from planner.scaling import Law, Times

# All of the order that measured A100 and H100 show.
#: Share of a specification's FLOP/s and bandwidth that good kernels reach.
_FLOPS_SHARE, _BANDWIDTH_SHARE = 0.85, 0.8
#: What a token costs in a full decode batch, over one in a prefill.
_DECODE_SHARE = 0.8
#: Share of a link's bandwidth that all-reduces of some kilobytes reach, and what one takes at least (seconds).
_LINK_SHARE, _REDUCE_S = 0.35, 25e-6
_NONE = Times(0, 0, 0, 0, 0, 0)


def roofline(
    shape: ModelShape, spec: DeviceSpec, devices: int, dtype: str, *, pcie: bool, rates: KernelRates | None = None
) -> Times:
    """The times of a model on such devices.

    Args:
        shape: the model.
        spec: one of the devices.
        devices: how many share the model.
        dtype: precision.
        pcie: whether all-reduces cross the host's bridge, though the devices have a link of their own.
        rates: what kernels reach on such a device, where that was measured.
    """
    reached = rates.flops if rates else spec.flops * _FLOPS_SHARE
    flops = reached * 2 / DTYPE_BYTES[dtype]
    bandwidth = rates.bandwidth if rates else spec.bandwidth * _BANDWIDTH_SHARE
    token = 2 * shape.parameters / flops
    weights = shape.weight_bytes(dtype) / bandwidth
    attention = 2 * shape.layers * shape.attention_heads * shape.head_size / flops
    alone = Times(weights / 2, token, attention, weights, _DECODE_SHARE * token, shape.kv_bytes(dtype) / bandwidth)
    crosses = pcie or not spec.link
    sent = sending(shape, spec, pcie=pcie) if devices > 1 else _NONE
    return Law(alone, sent, crosses).at(devices)


def sending(shape: ModelShape, spec: DeviceSpec, *, pcie: bool) -> Times:
    """What all-reduces cost, as the part of a ``planner.scaling.Law`` that does not divide."""
    link = spec.pcie if pcie or not spec.link else spec.link
    token = 2 * shape.reduced_bytes / (link * _LINK_SHARE)
    step = shape.reductions * _REDUCE_S
    return Times(step, token, 0.0, step, token, 0.0)
