"""The times of engine configurations that nobody measured, from those that somebody did. Pure.

In this order: the configuration itself was measured; its neighbours were (other numbers of devices or cores, another
precision), see ``planner.scaling``; nobody measured the device, and its public specification says how fast it can be at
best, see ``planner.device_catalogue``. Every estimate says which of these it is.

Engines side by side on one CPU share its memory bus. That is in their times where these were measured side by side, and
what is predicted from them is for engines that are not alone either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from broker.errors import UsageError
from broker.profiles import ProfileRecord
from broker.throughput import Profile
from planner.device_catalogue import begins, find_spec, words
from planner.fleet import KnownDevice
from planner.inventory import CPU, PCIE
from planner.kernel_rates import KernelRates
from planner.model_shape import DTYPE_BYTES, ModelShape, known_shape
from planner.roofline import roofline, sending
from planner.scaling import (
    Law,
    Times,
    between,
    fit_law,
    is_slower_with_more,
    law_from_one,
    of_other_model,
    with_full_batches,
)

#: Amdahl's serial part of a CPU engine's times, where only one number of cores was measured; and on a CPU so slow at
#: arithmetic that more bytes a number are faster: arithmetic divides.
_SERIAL_SHARE, _SERIAL_SHARE_OF_ARITHMETIC = 0.3, 0.05
#: vLLM's tokens a step for large GPUs, where nothing tells.
_BATCHED_TOKENS = 8192
_UNITS = re.compile(r" x(\d+)$")


class Basis(StrEnum):
    """How an estimate came about, best first."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    ROUGH = "rough"


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured engine.

    Attributes:
        device: kind of its devices.
        model: name of the model; empty: of whichever is asked for.
        units: devices that shared the model; on a CPU its cores.
        dtype: precision; empty where nobody said.
        profile: times and sizes.
        max_batched_tokens: tokens a step; 0 where nobody said.
    """

    device: str
    model: str
    units: int
    dtype: str
    profile: Profile
    max_batched_tokens: int = 0

    @classmethod
    def of_record(cls, record: ProfileRecord) -> Measured:
        """What ``tokenyard profile`` measured; its device reads ``cpu x4`` or ``NVIDIA L4 x2``."""
        found = _UNITS.search(record.device)
        device = record.device[: found.start()] if found else record.device
        cores = int(found[1]) if found and words(device) == CPU else 0
        units = cores or record.tensor_parallel
        return cls(device, record.model, units, record.dtype, record.profile, record.max_batched_tokens)

    @classmethod
    def of_known(cls, known: KnownDevice) -> Measured:
        """A line of a table of profiles."""
        return cls(known.device, known.model, known.tp, "", known.profile, known.max_batched_tokens)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Times of a configuration, and how they were found.

    Attributes:
        times: the six coefficients, seconds.
        max_batched_tokens: tokens a step.
        basis: how sure that is.
        source: what it rests on, in words.
    """

    times: Times
    max_batched_tokens: int
    basis: Basis
    source: str


class Estimator:
    """Estimates for one model."""

    def __init__(
        self,
        shape: ModelShape,
        measured: Iterable[Measured],
        names: Sequence[str] = (),
        rates: Sequence[KernelRates] = (),
    ) -> None:
        """Take in what was measured.

        Args:
            shape: the model to estimate for.
            measured: of it, and of other models on the same devices: these tell what sending costs there.
            names: further names that profiles may call the model by.
            rates: what kernels reach on devices that nobody measured an engine on.
        """
        self._shape = shape
        self._names = {_model(name) for name in (shape.name, *names)}
        self._all = list(measured)
        self._rates = rates

    def own(self, device: str) -> list[Measured]:
        """What was measured of this model on such a device.

        Raises:
            UsageError: the name could be several devices that were measured.
        """
        found = [m for m in self._all if (not m.model or _model(m.model) in self._names) and _is(m.device, device)]
        exact = [m for m in found if words(m.device) == words(device)]
        names = {words(m.device): m.device for m in found}
        if not exact and len(names) > 1:
            raise UsageError(f"the device {device!r} could be {' or '.join(sorted(names.values()))}: say which")
        return exact or found

    def estimate(self, device: str, units: int, dtype: str, interconnect: str = "") -> Estimate:
        """The times of an engine of this model.

        Args:
            device: kind of its devices, ``cpu`` for cores.
            units: devices that share the model, or cores.
            dtype: precision.
            interconnect: ``pcie`` where all-reduces cross the host's bridge.

        Raises:
            UsageError: nobody measured the device, and no specification of it is known.
        """
        own = self.own(device)
        if not own:
            return self._rough(device, units, dtype, interconnect)
        same = {m.units: m for m in own if self._dtype(m) == dtype}
        if units in same:
            return Estimate(Times.of(same[units].profile), _tokens(own), Basis.MEASURED, "measured")
        if words(device) == CPU and len(same) == 1 and len({m.units for m in own}) == len(own):
            by_bytes = self._by_bytes(own, dtype)
            if len(by_bytes) > 1:
                times, source = self._of_cores(by_bytes, same, units), _source(device, same, "")
                return Estimate(times, _tokens(own), Basis.PREDICTED, f"{source} and other precisions")
        known = same | {n: m for n, m in self._converted(own, same, dtype).items() if n not in same}
        times = {n: self._full(device, m) for n, m in known.items()}
        source = _source(device, known, "" if same else self._dtype(own[0]))
        if units not in times:
            return Estimate(
                self._law(device, times, interconnect == PCIE).at(units), _tokens(own), Basis.PREDICTED, source
            )
        return Estimate(times[units], _tokens(own), Basis.PREDICTED, source)

    def _of_cores(self, by_bytes: Mapping[float, Profile], same: Mapping[int, Measured], units: int) -> Times:
        """The times of so many cores, by what cores did in several precisions.

        Where fewer bytes on more cores took longer, it is not bytes that take the time: the CPU has no instructions for
        the smaller numbers. What it does in one precision then says nothing of another, and its own divides by cores.
        """
        if not is_slower_with_more(by_bytes):
            return between(by_bytes, units)
        ((cores, only),) = same.items()
        times = Times.of(only.profile)
        return law_from_one(cores, times, _serial(times, cores, _SERIAL_SHARE_OF_ARITHMETIC)).at(units)

    def _by_bytes(self, own: Sequence[Measured], dtype: str) -> dict[float, Profile]:
        """What cores did in any precision, by the number of cores that would do as much in this one.

        Cores share the memory bus, with each other and with the engines beside them: so the bytes decide that each has
        to read, and a core at two bytes a number is like two at four. What was measured in this precision goes first.
        """
        found: dict[float, Profile] = {}
        for m in sorted(own, key=lambda m: self._dtype(m) != dtype):
            cores = m.units * DTYPE_BYTES[dtype] / DTYPE_BYTES.get(self._dtype(m), 2)
            found.setdefault(cores, m.profile)
        return found

    def _converted(self, own: Sequence[Measured], same: Mapping[int, Measured], dtype: str) -> dict[int, Measured]:
        """What was measured in another precision, as it would be in this one.

        What both were measured on tells the ratio. Otherwise it is that of their bytes: what is read grows with these
        and, at the tensor cores, so does the time of an operation. A measured time in this precision is worth more.
        """
        others = {m.units: m for m in own if self._dtype(m) != dtype}
        both = sorted(same.keys() & others.keys())
        if same and not both:
            return {}
        found: dict[int, Measured] = {}
        for n, m in others.items():
            factor = DTYPE_BYTES[dtype] / DTYPE_BYTES.get(self._dtype(m), 2)
            ratios = [factor] * 6
            if both:
                pair = zip(Times.of(same[both[0]].profile), Times.of(others[both[0]].profile), strict=True)
                ratios = [x / y if y > 0 else factor for x, y in pair]
            times = Times(*(r * t for r, t in zip(ratios, Times.of(m.profile), strict=True)))
            found[n] = replace(m, profile=times.profile(m.profile.kv_tokens, m.profile.seats), dtype=dtype)
        return found

    def _full(self, device: str, measured: Measured) -> Times:
        return with_full_batches(Times.of(measured.profile), self._decode_share(device))

    def _law(self, device: str, times: dict[int, Times], pcie: bool) -> Law:
        pcie = pcie and words(device) != CPU
        if len(times) > 1:
            return fit_law(times, pcie)
        ((units, only),) = times.items()
        return law_from_one(units, only, self._fixed(device, units, only, pcie), pcie)

    def _fixed(self, device: str, units: int, only: Times, pcie: bool) -> Times:
        """The part that does not divide, where this model was measured on one number of devices."""
        if words(device) == CPU:
            return _serial(only, units, _SERIAL_SHARE)
        reference = self._reference(device)
        if reference is None:
            spec = find_spec(device)
            return sending(self._shape, spec, pcie=pcie) if spec else Times(0, 0, 0, 0, 0, 0)
        shape, times = reference
        fixed = fit_law(times, pcie).fixed
        return of_other_model(
            fixed, self._shape.reductions / shape.reductions, self._shape.reduced_bytes / shape.reduced_bytes
        )

    def _reference(self, device: str) -> tuple[ModelShape, dict[int, Times]] | None:
        """Another model that was measured on several numbers of such devices: the one measured on most."""
        found: dict[str, dict[int, Times]] = {}
        for m in self._all:
            other = m.model and _model(m.model) not in self._names
            if other and _is(m.device, device) and known_shape(_model(m.model)):
                found.setdefault(_model(m.model), {})[m.units] = Times.of(m.profile)
        model = max(found, key=lambda name: len(found[name]), default="")
        shape = known_shape(model)
        return (shape, found[model]) if shape is not None and len(found[model]) > 1 else None

    def _decode_share(self, device: str) -> float:
        """What one more request costs a decode step, over what a token costs a prefill, in the fullest batches seen.

        Only engines with room for full batches tell: of those measured on such a device the roomiest.
        """
        seen = [m.profile for m in self._all if _is(m.device, device) and m.profile.prefill_b > 0]
        if words(device) == CPU or not seen:
            return 0.0
        roomiest = max(seen, key=lambda p: p.kv_tokens)
        return roomiest.decode_e / roomiest.prefill_b

    def _dtype(self, measured: Measured) -> str:
        return measured.dtype or self._shape.dtype

    def _rough(self, device: str, units: int, dtype: str, interconnect: str) -> Estimate:
        spec = find_spec(device)
        if spec is None:
            raise UsageError(
                f"nothing is known of the device {device!r}: measure it with `tokenyard profile` and give --profiles"
            )
        rates = next((rates for rates in self._rates if _is(rates.device, device)), None)
        times = roofline(self._shape, spec, units, dtype, pcie=interconnect == PCIE, rates=rates)
        source = rates.source if rates else f"specification of {spec.name}"
        return Estimate(times, _BATCHED_TOKENS, Basis.ROUGH, source)


def _serial(times: Times, cores: int, share: float) -> Times:
    """The part of times on so many cores that does not divide; ``share`` is what it is of those on one core."""
    serial = share / (share + (1 - share) / cores)
    return Times(*(serial * t for t in times))


def _model(name: str) -> str:
    return name.rpartition("/")[2].partition("(")[0].casefold()


def _is(measured: str, device: str) -> bool:
    a, b = words(measured), words(device)
    if begins(a, b) or begins(b, a):
        return True
    specs = find_spec(measured), find_spec(device)
    return specs[0] is not None and specs[0] == specs[1]


def _tokens(measured: Sequence[Measured]) -> int:
    return max((m.max_batched_tokens for m in measured), default=0) or _BATCHED_TOKENS


def _source(device: str, measured: Iterable[int], other_dtype: str) -> str:
    what = "cores" if words(device) == CPU else "tp"
    counts = " and ".join(str(n) for n in sorted(measured))
    return f"from {what} {counts}" + (f" in {other_dtype}" if other_dtype else "")
