"""Who is served next: fair shares of device-seconds between tenants. Pure.

Start-time fair queueing (Goyal, Vin, Cheng, 1996): every tenant has a *virtual time*, the device-seconds it was given
over its weight; whoever waits with the least is next. One that comes (or comes back) starts at the time of who is being
served, so that nobody saves shares up and nobody pays for what was free. A job is charged what it is predicted to cost
when it is placed, and the difference when it has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from broker.errors import UsageError
from broker.tenant_names import DEFAULT_TENANT, is_tenant

#: No job costs less (seconds of a device) or more: what says so is forged, or a device's profile is.
_LEAST_S, _MOST_S = 1e-6, 1e6


class TenantTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator grants a tenant.

    Attributes:
        weight: its share, relative to the others that wait.
        max_running: most of its jobs on all devices at a time, queued there or running; 0 for any number.
    """

    weight: Annotated[float, msgspec.Meta(ge=0.001, le=1000)] = 1.0
    max_running: Annotated[int, msgspec.Meta(ge=0, le=10**6)] = 0


_DEFAULT_TERMS = TenantTerms()


def parse_terms(text: bytes | str) -> TenantTerms:
    """Terms from their JSON.

    Raises:
        UsageError: they are none; says what is wrong.
    """
    try:
        return msgspec.json.decode(text, type=TenantTerms)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not the terms of a tenant: {error}") from None


def parse_all_terms(raw: Mapping[bytes, bytes]) -> tuple[dict[str, TenantTerms], list[str]]:
    """Terms by tenant, and a line for each field that holds none (anyone can write to Redis)."""
    terms: dict[str, TenantTerms] = {}
    problems: list[str] = []
    for name, text in raw.items():
        tenant = name[:64].decode(errors="replace")
        try:
            if not is_tenant(tenant):
                raise UsageError("no tenant is called so")
            terms[tenant] = parse_terms(text[:1024])
        except UsageError as error:
            problems.append(f"{tenant!r}: {error}")
    return terms, problems


@dataclass(slots=True)
class Account:
    """A tenant's virtual time (device-seconds over weight), and how many of its jobs the devices have."""

    virtual_s: float = 0.0
    running: int = 0


@dataclass(slots=True)
class Ledger:
    """What each tenant was given, and who is next.

    ``terms`` are the operator's; a tenant that has none gets weight 1 and no cap.
    """

    terms: dict[str, TenantTerms] = field(default_factory=dict[str, TenantTerms])
    accounts: dict[str, Account] = field(default_factory=dict[str, Account])
    _now_s: float = 0.0  # virtual time of who was served last
    _waited: set[str] = field(default_factory=set[str])
    _charged: dict[str, tuple[str, float]] = field(default_factory=dict[str, tuple[str, float]])  # job -> tenant, s

    def see_waiting(self, tenants: Collection[str]) -> None:
        """Those who have jobs that wait; whoever did not before starts at the time of now."""
        for tenant in tenants:
            if tenant not in self._waited:
                account = self.accounts.setdefault(tenant, Account())
                account.virtual_s = max(account.virtual_s, self._now_s)
        self._waited = set(tenants)
        idle = [t for t, a in self.accounts.items() if t not in self._waited and not a.running]
        for tenant in idle:
            if self.accounts[tenant].virtual_s <= self._now_s:
                del self.accounts[tenant]

    def next(self, among: Iterable[str]) -> str | None:
        """Who is served next: of those below their cap the one with the least virtual time; None where nobody is."""
        open_to = [tenant for tenant in among if self.room(tenant) > 0]
        if not open_to:
            return None
        tenant = min(open_to, key=lambda t: (self._account(t).virtual_s, t))
        self._now_s = max(self._now_s, self._account(tenant).virtual_s)
        return tenant

    def room(self, tenant: str) -> int:
        """How many more of its jobs the devices may be given."""
        most = self.terms.get(tenant, _DEFAULT_TERMS).max_running
        return most - self._account(tenant).running if most else 10**9

    def placed(self, job_id: str, tenant: str, seconds: float) -> None:
        """A job goes to a device, and is predicted to cost it so many seconds."""
        self.undo(job_id)
        seconds = min(max(seconds, _LEAST_S), _MOST_S)
        self._charge(tenant, seconds)
        self._account(tenant).running += 1
        self._charged[job_id] = (tenant, seconds)

    def ended(self, job_id: str, seconds: float | None) -> None:
        """A job ended, and has cost so many seconds (None: as many as predicted)."""
        known = self._charged.pop(job_id, None)
        if known is None:
            return
        tenant, predicted = known
        self._account(tenant).running -= 1
        if seconds is not None:
            self._charge(tenant, min(max(seconds, _LEAST_S), _MOST_S) - predicted)

    def undo(self, job_id: str) -> None:
        """A job left its device without a result: it has cost nothing yet."""
        known = self._charged.pop(job_id, None)
        if known is not None:
            self._account(known[0]).running -= 1
            self._charge(known[0], -known[1])

    def _charge(self, tenant: str, seconds: float) -> None:
        self._account(tenant).virtual_s += seconds / self.terms.get(tenant, _DEFAULT_TERMS).weight

    def _account(self, tenant: str) -> Account:
        account = self.accounts.get(tenant)
        if account is None:
            account = self.accounts[tenant] = Account(self._now_s)
        return account

    @property
    def capped(self) -> bool:
        """Whether the default tenant has a cap: then its jobs are counted also where no other is there."""
        return self.terms.get(DEFAULT_TENANT, _DEFAULT_TERMS).max_running > 0
