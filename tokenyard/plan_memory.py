"""The last plan that a host carried out, kept in a file: what it goes back to, also after its supervisor was killed."""

from __future__ import annotations

import logging
from pathlib import Path

from broker.errors import UsageError
from broker.plan_record import parse_plan, plan_text
from broker.pool_plan import PoolPlan

log = logging.getLogger(__name__)


class PlanMemory:
    """One plan."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: PoolPlan | None = None

    def read(self) -> PoolPlan | None:
        """The plan that was kept; None where there is none, or none that can be read."""
        try:
            self._kept = parse_plan(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, UsageError) as error:
            log.warning("%s: %s: passed over", self._path, error)
        return self._kept

    def keep(self, plan: PoolPlan) -> None:
        """Keep a plan in place of the one before."""
        if plan == self._kept:
            return
        self._kept = plan
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(plan_text(plan))
            new.replace(self._path)
        except OSError as error:
            log.warning("cannot write %s (%s): a restart will know no plan to go back to", self._path, error.strerror)
