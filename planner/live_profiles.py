"""Profiles put right by what the pool's workers do: the speed that heartbeats show. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from broker.drift import Drift
from broker.heartbeat import Heartbeat
from broker.profiles import ProfileRecord, ProfileValues, parse_profile
from broker.throughput import DeviceKind

#: Errors smaller than this share are those of the measurement.
_TOLERANCE = 0.1
#: No profile is this much off: what says so is a device that does something else, too.
_MOST = 4.0
_BATCHED_TOKENS = 8192


@dataclass(slots=True)
class LiveSpeeds:
    """Follows heartbeats, and says how much slower than their profiles workers run."""

    _drifts: dict[str, Drift] = field(default_factory=dict[str, Drift])
    _last: dict[str, Heartbeat] = field(default_factory=dict[str, Heartbeat])

    def observe(self, beats: Mapping[str, Heartbeat | None]) -> None:
        """Learn from the latest heartbeats; those between two looks need not all be seen."""
        for name, beat in beats.items():
            before = self._last.get(name)
            if beat is None or (before is not None and not beat.tells_more_than(before)):
                continue
            self._last[name] = beat
            kind = _kind(beat)
            if before is None or kind is None or before.incarnation != beat.incarnation:
                self._drifts.pop(name, None)
            else:
                self._drifts.setdefault(name, Drift()).observe(kind, before, beat)

    def slowdowns(self) -> dict[tuple[str, str], float]:
        """Device and model -> median slowdown of their workers; only where enough was seen to tell."""
        found: dict[tuple[str, str], list[float]] = {}
        for name, drift in self._drifts.items():
            beat = self._last[name]
            if drift.factor != 1.0:
                found.setdefault((beat.device, beat.model), []).append(drift.factor)
        return {key: median(factors) for key, factors in found.items()}


def refit(records: Sequence[ProfileRecord], slowdowns: Mapping[tuple[str, str], float]) -> list[ProfileRecord]:
    """The records with their times put right; as they are where the pool shows nothing else."""
    return [_refit(record, slowdowns.get((record.device, record.model), 1.0)) for record in records]


def _refit(record: ProfileRecord, slowdown: float) -> ProfileRecord:
    slowdown = min(max(slowdown, 1 / _MOST), _MOST)
    if abs(slowdown - 1.0) <= _TOLERANCE:
        return record
    return record.model_copy(update={"values": ProfileValues.of(record.profile.slower(slowdown))})


def _kind(beat: Heartbeat) -> DeviceKind | None:
    profile = parse_profile(beat.profile, beat.kv_tokens_total, beat.seats)
    if profile is None:
        return None
    return DeviceKind(profile, max_batched_tokens=max(beat.max_batched_tokens or _BATCHED_TOKENS, beat.seats))
