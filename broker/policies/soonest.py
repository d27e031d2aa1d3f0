"""All that waits fits: each job where it is done soonest, without making the last device later. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from broker.policies.base import Candidate, Offer, Placement, Round
from broker.policies.outlook import busy_seconds, own_seconds, predicted_seconds
from broker.throughput import DeviceKind
from broker.window import Line

#: Devices that have a prefix cached which are looked at.
_HOLDERS = 16


class _Group:
    """Devices of one kind, the one that will be done first in front."""

    def __init__(self, offers: list[Offer]) -> None:
        self.offers = sorted(offers, key=busy_seconds)

    def best(self, candidate: Candidate, end: float) -> tuple[tuple[float, float], Offer, bool]:
        """How good the kind is for a job (less is better), its device, and whether that has room now.

        A device that has none counts, too: waiting for it may be better than a slower one at once.
        """
        offer = next((o for o in self.offers if o.slots_left > 0 and o.fits(candidate)), self.offers[0])
        room = offer.slots_left > 0 and offer.fits(candidate)
        lengths = candidate.prompt_tokens, candidate.output_tokens
        if offer.kind is None and not room:  # nobody knows how long the wait would be
            return (float("inf"), float("inf")), offer, False
        duration = predicted_seconds(offer, *lengths)
        done = max(busy_seconds(offer) + own_seconds(offer, *lengths), duration)
        return (max(done, end), duration), offer, room


def place_soonest(turn: Round, line: Line, limit: int) -> list[Placement]:
    """Place a line's jobs, long ones first; one whose best device has no room waits for it."""
    groups: dict[DeviceKind | None, list[Offer]] = {}
    end = 0.0
    for offer in turn.offers:
        groups.setdefault(offer.kind, []).append(offer)
        end = max(end, busy_seconds(offer))
    kinds = {kind: _Group(offers) for kind, offers in groups.items()}
    by_name = {offer.device: offer for offer in turn.open}
    placed: list[Placement] = []
    for candidate in sorted(line, key=lambda c: -c.output_tokens)[:limit]:
        holding = [group for kind, group in kinds.items() if _can_hold(kind, candidate)] or list(kinds.values())
        rank, offer, room = min((group.best(candidate, end) for group in holding), key=lambda best: best[0])
        reason = "only" if len(holding) == 1 < len(kinds) else "fastest"
        cached = _where_cached(turn, by_name, candidate, end)
        if cached is not None and cached[0] <= rank:
            (rank, offer), room, reason = cached, True, "prefix"
        if room:
            placed.append(offer.put(candidate, rank[1], reason))
            offer.added_s += own_seconds(offer, candidate.prompt_tokens, candidate.output_tokens)
            kinds[offer.kind].offers.sort(key=busy_seconds)
    return placed


def _where_cached(
    turn: Round, by_name: Mapping[str, Offer], candidate: Candidate, end: float
) -> tuple[tuple[float, float], Offer] | None:
    """The best of the devices that have the job's prefix cached and room for it."""
    if turn.prefixes is None or not candidate.prefix:
        return None
    lengths = candidate.prompt_tokens - candidate.shared_tokens, candidate.output_tokens
    ranked: list[tuple[tuple[float, float], Offer]] = []
    for name in islice(turn.prefixes.holders_of(candidate.prefix), _HOLDERS):
        offer = by_name.get(name)
        if offer is not None and offer.slots_left > 0 and offer.fits(candidate):
            duration = predicted_seconds(offer, *lengths)
            done = max(busy_seconds(offer) + own_seconds(offer, *lengths), duration)
            ranked.append(((max(done, end), duration), offer))
    return min(ranked, key=lambda r: r[0], default=None)


def _can_hold(kind: DeviceKind | None, candidate: Candidate) -> bool:
    return kind is None or kind.can_hold(candidate.prompt_tokens + candidate.output_tokens)
