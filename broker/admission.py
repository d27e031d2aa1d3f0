"""Late binding: how much a device may be given now. Pure.

A device queue is only as deep as hides the dispatch round trip, bounded by the device's KV tokens and seats;
every other job stays in the request stream, free to go anywhere.
"""

from __future__ import annotations

from broker.cluster import Device
from broker.policies.base import Offer


def offer_of(device: Device, round_trip_s: float) -> Offer:
    """A device's room: its seats plus the depth that hides the round trip, and KV memory by the peak to come."""
    beat = device.heartbeat
    depth = device.depth(round_trip_s)
    # The engine holds back more than a queue's worth: it is full, whatever our predictions say.
    overfull = beat.waiting > max(depth, beat.seats // 4)
    return Offer(
        device=device.name,
        seats=beat.seats,
        kv_tokens=beat.kv_tokens_total,
        speed=device.speed,
        slots_left=0 if overfull else beat.seats + depth - len(device.in_flight),
        kv_bound=beat.kv_tokens_total * device.kv_share.value,
        outstanding=len(device.in_flight),
        outstanding_tokens=device.tokens_in_flight,
        kind=device.kind,
        backlog=device.backlog,
        calendar=device.calendar,
    )
