"""Late binding: how much a device may be given now. Pure.

A device queue is only as deep as hides the dispatch round trip, bounded by the device's KV tokens and seats;
every other job stays in the request stream, free to go anywhere.
"""

from __future__ import annotations

from broker.cluster import Device
from broker.policies.base import Offer


def offer_of(device: Device, round_trip_s: float, *, many_wait: bool = False) -> Offer:
    """A device's room: its seats plus the depth that hides the round trip, and KV memory by the peak to come."""
    offer = Offer(device.name, 0, 0, 0.0, slots_left=0, kv_bound=0.0, outstanding=0, outstanding_tokens=0)
    renew_offer(offer, device, round_trip_s, many_wait=many_wait)
    return offer


def renew_offer(offer: Offer, device: Device, round_trip_s: float, *, many_wait: bool = False) -> None:
    """The same device's room now; ``many_wait`` says whether far more jobs wait than there is room for."""
    beat = device.heartbeat
    device.looked_at(many_wait=many_wait)
    depth = device.depth(round_trip_s)
    # The engine holds back more than a queue's worth: it is full, whatever our predictions say.
    overfull = beat.waiting > max(depth, beat.seats // 4)
    offer.seats, offer.kv_tokens, offer.speed = beat.seats, beat.kv_tokens_total, device.speed
    offer.outstanding, offer.outstanding_tokens = len(device.in_flight), device.tokens_in_flight
    offer.slots_left = 0 if overfull else beat.seats + depth - offer.outstanding
    offer.kv_bound = beat.kv_tokens_total * device.kv_share.value
    offer.kind, offer.backlog, offer.calendar = device.kind, device.backlog, device.calendar
    offer.queued_tokens, offer.max_batched_tokens = device.backlog.prompt_left, device.max_batched_tokens
    offer.renewed()
