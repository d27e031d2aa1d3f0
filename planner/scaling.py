"""How an engine's times change with the devices (or CPU cores) that share its model. Pure.

Each of the six coefficients is a part that divides by the number n of devices, and one that does not:

    time(n) = divided / n + fixed * share(n)

Over NVLink ``share`` is 1. That one form holds both for what every device does by itself (kernel launches, the host)
and for a ring all-reduce, whose time ``k * (n - 1) / n`` is ``k - k / n`` (Thakur, Rabenseifner and Gropp, 2005). Over
PCIe all traffic of a ring crosses the host's bridge: what is sent for each token there grows as n - 1. Attention (c and
f) divides by heads, and nothing of it is sent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from broker.throughput import Profile

Array = NDArray[np.float64]

#: Times below this (seconds) are none; beside others of the same coefficient, those below this share are not told
#: apart.
_NOTHING, _NEGLIGIBLE = 1e-30, 1e-6


class Times(NamedTuple):
    """The six coefficients of a ``broker.throughput.Profile``, seconds."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    @classmethod
    def of(cls, profile: Profile) -> Times:
        """Those of a profile."""
        return cls(*astuple(profile)[:6])

    def profile(self, kv_tokens: int, seats: int) -> Profile:
        """A profile with these and sizes."""
        return Profile(*self, kv_tokens=kv_tokens, seats=seats)


#: Coefficients by what they are: of a step (all-reduces' latency), of a token (their bytes), of attention.
_STEP, _TOKEN, _ATTENTION = (0, 3), (1, 4), (2, 5)


@dataclass(frozen=True, slots=True)
class Law:
    """Times by the number of devices.

    Attributes:
        divided: what divides by that number; seconds on one.
        fixed: what does not.
        pcie: whether all-reduces cross the host's bridge.
    """

    divided: Times
    fixed: Times
    pcie: bool = False

    def at(self, devices: float) -> Times:
        """The times on so many devices."""
        parts = zip(self.divided, self.fixed, strict=True)
        return Times(*(x / devices + y * _share(i, devices, self.pcie) for i, (x, y) in enumerate(parts)))


def fit_law(measured: Mapping[int, Times] | Mapping[float, Times], pcie: bool = False) -> Law:
    """The law through times measured on two or more numbers of devices.

    Least squares of the relative errors, neither part below zero; with two numbers it goes through both wherever that
    leaves the parts positive.

    Args:
        measured: times by number of devices.
        pcie: see ``Law``.
    """
    parts = [_fit(i, {n: times[i] for n, times in measured.items()}, pcie) for i in range(6)]
    return Law(Times(*(x for x, _ in parts)), Times(*(y for _, y in parts)), pcie)


def between(measured: Mapping[float, Profile], units: float) -> Times:
    """Times on so many units, from profiles whose coefficients are not told apart well enough to compare one by one.

    A light profile knows how long a full step takes, and less well which part of that is each request's and which its
    context's. So the time of a prefill and that of a decode step, of half the requests and memory there are, follow
    one power of the number of units each (0 to 1); what they are made up of is the mean of what was measured.

    Args:
        measured: profiles by number of units, two or more.
        units: how many to predict for.
    """
    at = _half_full(measured.values())
    parts = {n: np.array(Times.of(p)) * at for n, p in measured.items()}
    prefill = _by_power({n: found[:3] for n, found in parts.items()}, units)
    decode = _by_power({n: found[3:] for n, found in parts.items()}, units)
    return Times(*(np.concatenate([prefill, decode]) / np.maximum(at, _NOTHING)).tolist())


def is_slower_with_more(measured: Mapping[float, Profile]) -> bool:
    """Whether a prefill and a decode step, as in ``between``, took longer on the most units than on the fewest."""
    at = _half_full(measured.values())
    fewest, most = (np.array(Times.of(measured[n])) * at for n in (min(measured), max(measured)))
    return bool(most[:3].sum() > fewest[:3].sum() and most[3:].sum() > fewest[3:].sum())


def _half_full(profiles: Collection[Profile]) -> Array:
    """What each coefficient is multiplied by in a prefill and a decode step, half of the least requests and memory."""
    requests = max(min(p.seats for p in profiles) / 2, 1.0)
    context = min(p.kv_tokens for p in profiles) / 2
    prompt = context / requests
    return np.array((1.0, prompt, prompt**2, 1.0, requests, context))


def _by_power(parts: Mapping[float, Array], units: float) -> Array:
    """Parts of a time: their sum follows a power of the number of units, their shares are the mean of the measured."""
    whole = {n: float(found.sum()) for n, found in parts.items()}
    if min(whole.values()) <= _NOTHING:
        return np.mean(list(parts.values()), axis=0)
    shares = np.mean([parts[n] / whole[n] for n in parts], axis=0)
    log_units, log_seconds = np.log(list(whole)), np.log(list(whole.values()))
    power = min(max(-float(np.polyfit(log_units, log_seconds, 1)[0]), 0.0), 1.0)
    return shares * np.exp(log_seconds.mean() - power * (np.log(units) - log_units.mean()))


def law_from_one(devices: int, times: Times, fixed: Times, pcie: bool = False) -> Law:
    """The law through times on one number of devices, given the part that does not divide.

    Args:
        devices: how many devices they were measured on.
        times: what was measured.
        fixed: what is known of the part that does not divide; no more of it is taken than was measured.
        pcie: see ``Law``.
    """
    kept = [
        min(y, t / _share(i, devices, pcie)) if _share(i, devices, pcie) else y
        for i, (t, y) in enumerate(zip(times, fixed, strict=True))
    ]
    divided = [(t - y * _share(i, devices, pcie)) * devices for i, (t, y) in enumerate(zip(times, kept, strict=True))]
    return Law(Times(*divided), Times(*kept), pcie)


def of_other_model(fixed: Times, reductions: float, reduced_bytes: float) -> Times:
    """The part that does not divide, for a model that sends more or less.

    Args:
        fixed: that of the model that was measured.
        reductions: all-reduces of a step, as a multiple of the measured model's: they cost time each.
        reduced_bytes: bytes of a token's all-reduces, likewise.
    """
    return Times(*(y * (reductions if i in _STEP else reduced_bytes) for i, y in enumerate(fixed)))


def with_full_batches(times: Times, decode_share: float) -> Times:
    """Decode steps that no batch makes cheaper than its tokens are in a prefill.

    A profile whose engine held few requests at once saw only steps that wait for memory, where one more request costs
    next to nothing. In full batches each costs what a token costs in any step: ``decode_share`` of b.
    """
    return times._replace(e=max(times.e, decode_share * times.b))


def _share(coefficient: int, devices: float, pcie: bool) -> float:
    if coefficient in _ATTENTION:
        return 0.0
    return float(devices - 1) if pcie and coefficient in _TOKEN else 1.0


def _fit(coefficient: int, seconds: Mapping[float, float], pcie: bool) -> tuple[float, float]:
    """What divides and what does not, of one coefficient."""
    shares = [_share(coefficient, n, pcie) for n in seconds]
    rows = np.array([[1 / n, share] for n, share in zip(seconds, shares, strict=True)])
    times = np.array(list(seconds.values()))
    if not times.max() > _NOTHING:
        return 0.0, 0.0
    weights = 1 / np.maximum(times, _NEGLIGIBLE * times.max())
    (divided, fixed), _ = nnls(rows * weights[:, None], times * weights)
    return float(divided), float(fixed)
