"""Which API key is whose: a file of keys, a line each."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

from broker.errors import UsageError
from broker.tenant_names import is_tenant
from tokenyard.gateway.errors import ApiError

_HASHED = "sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LEAST_CHARS = 16
#: Stands where a tenant's name would, for all of them.
_OPERATOR = "*"


class ApiKeys:
    """The tenants by their keys; only SHA-256 sums are kept, so how long a look takes tells nothing of a key."""

    def __init__(self, tenants: dict[str, str], anybody: str | None = None) -> None:
        """Args:
        tenants: SHA-256 of a key, in hexadecimal -> tenant, or ``*``: an operator, who sees all and asks nothing.
        anybody: tenant of whoever calls, with any key or none; None: a key is needed.
        """
        self._tenants = tenants
        self._anybody = anybody

    def __len__(self) -> int:
        return len(self._tenants)

    def tenant_of(self, authorization: str | None) -> str:
        """Whose a call is, by its header ``Authorization: Bearer KEY``.

        Raises:
            ApiError: status 401: there is no key, or nobody's; 403: it is an operator's.
        """
        if self._anybody is not None:
            return self._anybody
        tenant = self._owner_of(authorization)
        if tenant == _OPERATOR:
            raise ApiError(403, "This API key is an operator's: it shows the cluster and sends no requests")
        return tenant

    def viewer_of(self, authorization: str | None) -> str | None:
        """The tenant who looks at the cluster; None: an operator, as is whoever calls where no keys are needed.

        Raises:
            ApiError: status 401: there is no key, or nobody's.
        """
        if self._anybody is not None:
            return None
        tenant = self._owner_of(authorization)
        return None if tenant == _OPERATOR else tenant

    def _owner_of(self, authorization: str | None) -> str:
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            message = "You didn't provide an API key: send it as the header 'Authorization: Bearer KEY'"
            raise ApiError(401, message, code="invalid_api_key")
        tenant = self._tenants.get(_digest(key.strip()))
        if tenant is None:
            raise ApiError(401, "Incorrect API key provided", code="invalid_api_key")
        return tenant


def read_keys(path: Path) -> ApiKeys:
    """Read a file of keys: a line each, ``TENANT KEY`` or ``TENANT sha256:HEX``; ``#`` begins a comment.

    The tenant ``*`` is an operator.

    Raises:
        UsageError: the file cannot be read, or a line is none; no message shows a key.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read the API keys in {path}: {reason}") from None
    tenants: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            digest, tenant = _key_of(words, f"{path}:{number}")
            if tenants.setdefault(digest, tenant) != tenant:
                raise UsageError(f"{path}:{number}: another tenant has this key already")
    if not tenants:
        raise UsageError(f"{path} holds no API key: write lines such as 'acme KEY'")
    return ApiKeys(tenants)


def _key_of(words: list[str], place: str) -> tuple[str, str]:
    """The SHA-256 of a line's key, and its tenant."""
    if len(words) != 2 or not (is_tenant(words[0]) or words[0] == _OPERATOR):
        raise UsageError(f"{place}: write a tenant and its key, 'acme KEY'")
    tenant, key = words
    if not key.startswith(_HASHED):
        if len(key) < _LEAST_CHARS:
            raise UsageError(f"{place}: this key is too easy to guess: use at least {_LEAST_CHARS} characters")
        return _digest(key), tenant
    digest = key.removeprefix(_HASHED).lower()
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"{place}: after sha256: come 64 hexadecimal digits")
    return digest, tenant


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()
