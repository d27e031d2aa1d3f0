"""Whose a batch is: its id names the tenant, and so do the ids of its jobs and the names of its keys. Pure.

That is what makes tenants enforceable: Redis' ACL rules are patterns over key names (see ``broker.acl``).
"""

from __future__ import annotations

import re

from broker.errors import UsageError

#: Whoever names no tenant. Its batches are named ``batch_…``, as ``broker.client.new_batch_id`` makes them.
DEFAULT_TENANT = "default"
#: Stands between the tenant and the rest of a batch's id.
SEPARATOR = ":"

_TENANT = re.compile(r"(?!batch_)[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def is_tenant(name: str) -> bool:
    """Whether a tenant may be called so."""
    return _TENANT.fullmatch(name) is not None


def check_tenant(name: str) -> str:
    """The name, if it is one.

    Raises:
        UsageError: a tenant cannot be called so.
    """
    if not is_tenant(name):
        raise UsageError(
            f"tenant {name[:64]!r}: use up to 32 letters, digits, '_' and '-', not beginning with 'batch_'"
        )
    return name


def tenant_of(batch_or_job_id: str) -> str:
    """Whose a batch or a job is."""
    tenant, separator, _ = batch_or_job_id.partition(SEPARATOR)
    return tenant if separator and is_tenant(tenant) else DEFAULT_TENANT


def id_of_tenant(tenant: str, batch_id: str) -> str:
    """The batch's full id: the tenant's name goes before it where it is not there yet.

    Raises:
        UsageError: the id is that of another tenant.
    """
    check_tenant(tenant)
    if SEPARATOR not in batch_id:
        return batch_id if tenant == DEFAULT_TENANT else f"{tenant}{SEPARATOR}{batch_id}"
    if tenant_of(batch_id) != tenant:
        raise UsageError(f"batch {batch_id[:128]!r} is not one of tenant {tenant}")
    return batch_id
