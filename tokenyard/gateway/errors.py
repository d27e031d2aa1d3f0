"""Errors as the OpenAI API answers them: an HTTP status and an error object. Pure.

Form: https://platform.openai.com/docs/guides/error-codes. The official client makes its error types of the status.
"""

from __future__ import annotations

from typing import Any

import orjson

from broker.errors import (
    NotDurableError,
    QueueFullError,
    RedisRefusedError,
    RedisUnavailableError,
    TokenyardError,
    UnknownBatchError,
    UsageError,
)
from broker.jobs import BATCH_CANCELLED, REQUEST_TIMEOUT, Result

#: The official client sends a request again at a status of 429 or from 500 on, unless this header says no.
NO_RETRY = {"x-should-retry": "false"}

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_STATUSES: tuple[tuple[type[TokenyardError], int], ...] = (
    (UnknownBatchError, 404),
    (UsageError, 400),
    (QueueFullError, 429),
    (NotDurableError, 503),
    (RedisUnavailableError, 503),
    (RedisRefusedError, 503),
)
#: The status of a request that ended without a response, by its error code; any other is 502.
_ENDINGS = {BATCH_CANCELLED: 409, REQUEST_TIMEOUT: 504}


class ApiError(Exception):
    """A call is answered with this error.

    Attributes:
        status: HTTP status.
        param: the field that is wrong.
        code: OpenAI's name of the mistake, where it has one.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def error(self) -> dict[str, Any]:
        """The error object."""
        kind = _TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"message": str(self), "type": kind, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        """The answer as JSON."""
        return orjson.dumps({"error": self.error})


def not_found(what: str, name: str, param: str = "id") -> ApiError:
    """There is nothing of that name."""
    return ApiError(404, f"No such {what}: {name[:128]!r}", param=param, code="not_found")


def from_ours(error: TokenyardError) -> ApiError:
    """What goes wrong in the queue, as an answer."""
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    code = "queue_full" if isinstance(error, QueueFullError) else None
    return ApiError(status, str(error), code=code, headers={"retry-after": "1"} if status == 429 else None)


def without_response(result: Result) -> ApiError:
    """A request that no engine answered: its attempts are used up, so the client should not repeat it at once."""
    status = _ENDINGS.get(result.error_code, 502)
    return ApiError(status, result.error_message, code=result.error_code or None, headers=NO_RETRY)
