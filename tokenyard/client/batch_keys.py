"""From the key that a pipeline gives a batch to the batch's id. Pure."""

from __future__ import annotations

import re

from broker.errors import UsageError
from broker.tenant_names import id_of_tenant

_KEY = re.compile(r"(?!input_)([A-Za-z0-9_-]+:)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def batch_id_of(key: str, tenant: str) -> str:
    """The id of the batch of this key: the same key is always the same batch.

    Raises:
        UsageError: no batch can be called so, or it is another tenant's.
    """
    if not _KEY.fullmatch(key):
        shown = ascii(key[:64])
        raise UsageError(f"batch {shown}: use up to 100 letters, digits, '.', '_' and '-', not beginning with 'input_'")
    return id_of_tenant(tenant, key)
