"""What the scheduler sees of each tenant's backlog: a window and a placement policy of its own. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from broker.jobs import WaitingJob
from broker.policies.base import Policy
from broker.tenant_names import DEFAULT_TENANT, SEPARATOR, tenant_of
from broker.tenants import Ledger
from broker.window import Window

#: Jobs of one tenant that are placed at a time, where others wait, too.
QUANTUM_JOBS = 16


@dataclass(slots=True)
class TenantWindows:
    """The windows of all tenants but the default one, whose window and policy are the placer's own.

    Attributes:
        ledger: who is served next.
        windows: by tenant; of those that have jobs here.
        policies: by tenant: a policy remembers what it shared out, which is of one backlog.
    """

    ledger: Ledger = field(default_factory=Ledger)
    windows: dict[str, Window] = field(default_factory=dict[str, Window])
    policies: dict[str, Policy] = field(default_factory=dict[str, Policy])
    _served: bool = False  # whether others than the default tenant may have jobs on the devices

    @property
    def active(self) -> bool:
        """Whether there is more than one tenant to decide between, or a cap to keep."""
        return bool(self.windows) or self._served or self.ledger.capped

    def of(self, batch_id: str, default: Window) -> Window:
        """The window that jobs of this batch are in."""
        if SEPARATOR not in batch_id:  # the default tenant's: nothing to look up
            return default
        tenant = tenant_of(batch_id)
        if tenant == DEFAULT_TENANT:
            return default
        window = self.windows.get(tenant)
        if window is None:
            window = self.windows[tenant] = Window()
        return window

    def policy_of(self, tenant: str, default: Policy) -> Policy:
        """The policy that places a tenant's jobs; one of the same kind for each."""
        if tenant == DEFAULT_TENANT:
            return default
        policy = self.policies.get(tenant)
        if policy is None:
            policy = self.policies[tenant] = type(default)()
        return policy

    def tidy(self) -> None:
        """Forget tenants of whom nothing waits here and nothing runs."""
        for tenant in [t for t, window in self.windows.items() if not len(window)]:
            del self.windows[tenant]
        self._served = any(a.running for t, a in self.ledger.accounts.items() if t != DEFAULT_TENANT)
        for tenant in [t for t in self.policies if t not in self.windows and t not in self.ledger.accounts]:
            del self.policies[tenant]

    def jobs(self) -> Iterator[WaitingJob]:
        """All jobs that wait here."""
        for window in self.windows.values():
            for candidate in window:
                yield candidate.job

    def turns(self, waiting: dict[str, Window], limit: int, place: Callable[[str, Window, int, bool], int]) -> None:
        """Let tenants place jobs in turn, until ``limit`` are placed or nobody can place any.

        Args:
            waiting: those who have jobs that wait.
            limit: most jobs.
            place: places at most so many of a tenant's jobs, told whether it is the only one; returns how many it did.
        """
        self.ledger.see_waiting(waiting)
        alone = len(waiting) == 1
        able = dict(waiting)
        while limit > 0 and able:
            tenant = self.ledger.next(able)
            if tenant is None:
                return
            most = min(limit, self.ledger.room(tenant), limit if alone else QUANTUM_JOBS)
            placed = place(tenant, able[tenant], most, alone)
            limit -= placed
            if placed < most or not len(able[tenant]):
                del able[tenant]  # what it has left fits nowhere now
