"""Lines of OpenAI Batch files: read a request, write a result, read a result back. Pure.

Form of the lines: https://platform.openai.com/docs/guides/batch. A request is checked for what placing and
counting it needs; whether its body makes sense is the engine's to say.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, cast

import msgspec

from broker.prefixes import MIN_BYTES, format_marks, prefix_marks

# The list (or text) each endpoint cannot do without; its keys are the endpoints served.
_REQUIRED_FIELD = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
}
MAX_CUSTOM_ID_CHARS = 512
_INT64_MAX = 2**63 - 1
_SHOWN_CHARS = 60

ID_PREFIX = "batch_req_"
# Marks a failure that never became a job; job ids therefore must not start with "input_".
INPUT_ID_PREFIX = "batch_req_input_"

# Spaces after the separators as OpenAI writes them.
_RESPONSE = b'{"id": %b, "custom_id": %b, "response": {"status_code": %d, "request_id": %b, "body": %b}, "error": null}'
_FAILURE = b'{"id": %b, "custom_id": %b, "response": null, "error": {"code": %b, "message": %b}}'


class RequestLine(msgspec.Struct, frozen=True, gc=False):
    """One request of a batch file.

    Attributes:
        custom_id: the client's own id, unique in its file, 1 to 512 characters.
        url: the endpoint, for example ``/v1/chat/completions``.
        model: name of the model it asks for.
        body: the JSON object of the request, byte for byte as given.
        max_tokens: most output tokens it asks for; 0 where it names none, or none that is a positive integer.
        line: its line number, from 1.
        prefix: marks of how its prompt begins, as text (see ``broker.prefixes``); empty where it has none.
    """

    custom_id: str
    url: str
    model: str
    body: bytes
    max_tokens: int
    line: int
    prefix: str = ""


class LineError(msgspec.Struct, frozen=True, gc=False):
    """Why a line cannot run.

    Attributes:
        line: line number, from 1; 0 where it is not known.
        custom_id: the line's own, None where it has none that can be read.
        code: OpenAI's, where OpenAI has one: ``invalid_json_line``, ``missing_required_parameter``,
            ``invalid_type``, ``string_above_max_length``, ``integer_above_max_value``, ``unsupported_value``,
            ``invalid_method``, ``invalid_url``, ``duplicate_custom_id``; ``line_too_long`` is our own.
        message: one line, ``SOURCE:LINE: what is wrong and what to do``.
    """

    line: int
    custom_id: str | None
    code: str
    message: str


class OutputLine(msgspec.Struct, frozen=True, gc=False):
    """The outside of a line of an output or error file; a line without these four keys is none."""

    id: str
    custom_id: str | None
    response: msgspec.Raw
    error: msgspec.Raw

    @property
    def had_job(self) -> bool:
        """Whether the request was ever submitted: False for an input line that was refused."""
        return not self.id.startswith(INPUT_ID_PREFIX)


class _BodyOnly(msgspec.Struct, frozen=True, gc=False):
    body: msgspec.Raw


class _RefusalError(Exception):
    """Stops the checks of one line at the first problem."""

    def __init__(self, code: str, problem: str) -> None:
        super().__init__(code)
        self.code = code
        self.problem = problem


# A line is decoded twice: as a dict, because only that pass checks UTF-8 and numbers all the way down, and
# for the bytes of its body. Both take the last of doubled keys: the bytes passed on are the ones checked.
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode
_decode_body = msgspec.json.Decoder(_BodyOnly).decode
_decode_output = msgspec.json.Decoder(OutputLine).decode
_encode = msgspec.json.encode
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def parse_line(raw: bytes, *, line: int, source: str, max_bytes: int) -> RequestLine | LineError:
    """Read one line of a batch file; whatever the bytes, the answer is one of the two and never an exception.

    Args:
        raw: the line, with or without its line end.
        line: its number, from 1, for messages.
        source: the file's name, for messages.
        max_bytes: a longer line is refused unread.
    """
    custom_id: str | None = None
    try:
        if len(raw) > max_bytes:
            raise _RefusalError("line_too_long", f"the line is longer than {max_bytes} bytes: shorten it")
        fields = _decode_fields(raw)
        custom_id = _text(fields, "custom_id")
        if len(custom_id) > MAX_CUSTOM_ID_CHARS:
            raise _RefusalError(
                "string_above_max_length",
                f"custom_id has {len(custom_id)} characters: use at most {MAX_CUSTOM_ID_CHARS}",
            )
        url = _endpoint(fields)
        body = _checked_body(fields, url)
        model = _text(body, "model", "body.model")
        max_tokens = _max_tokens(body)
        prefix = format_marks(prefix_marks(url, body)) if len(raw) > MIN_BYTES else ""
        return RequestLine(custom_id, url, model, bytes(_decode_body(raw).body), max_tokens, line, prefix)
    except _RefusalError as refusal:
        code, problem = refusal.code, refusal.problem
    except _DECODE_ERRORS as error:
        code, problem = "invalid_json_line", f"not a valid JSON object: {_reason(error)}"
    return line_error(code, problem, line=line, source=source, custom_id=custom_id)


def line_error(code: str, problem: str, *, line: int, source: str, custom_id: str | None) -> LineError:
    """A LineError whose message names the place, on one line that can be written as UTF-8."""
    place = f"{source}:{line}: {problem}"
    message = " ".join(place.encode("utf-8", "replace").decode().splitlines())
    return LineError(line, custom_id, code, message)


def output_line(*, job_id: str, custom_id: str, status_code: int, body: bytes) -> bytes:
    """A line, without line end, for a request that an engine answered.

    It belongs in the output file with status 200, in the error file with any other.

    Args:
        job_id: the request's job; ``id`` and ``request_id`` come from it.
        custom_id: as the client gave it.
        status_code: HTTP status.
        body: one JSON value, taken over as it is: the response, or OpenAI's error object.
    """
    # JSON has raw line ends only between tokens, where a blank means the same.
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    return _RESPONSE % (_encode(ID_PREFIX + job_id), _encode(custom_id), status_code, _encode(job_id), body)


def failure_line(*, job_id: str | None, custom_id: str | None, code: str, message: str) -> bytes:
    """A line of the error file, without line end, for a request that no engine answered.

    Args:
        job_id: the request's job; None for an input line that never became one (see ``OutputLine.had_job``).
        custom_id: as the client gave it, None where it gave none.
        code: for example ``batch_expired``, ``batch_cancelled``, ``request_timeout`` or a LineError's.
        message: one line for a person.
    """
    if job_id is None:
        digest = blake2b(f"{custom_id}\n{code}\n{message}".encode(), digest_size=12).hexdigest()
        line_id = INPUT_ID_PREFIX + digest
    else:
        line_id = ID_PREFIX + job_id
    return _FAILURE % (_encode(line_id), _encode(custom_id), _encode(code), _encode(message))


def read_output_line(line: bytes) -> OutputLine | None:
    """The outside of an output or error line, or None where the bytes are no such line."""
    try:
        return _decode_output(line)
    except _DECODE_ERRORS:
        return None


def custom_id_of(line: bytes) -> str | None:
    """The custom_id of an output or error line; None where it has none, or is no such line."""
    output = read_output_line(line)
    return output.custom_id if output else None


def _text(fields: dict[str, Any], key: str, name: str = "") -> str:
    value = fields.get(key)
    if isinstance(value, str) and value:
        return value
    if value is None or value == "":
        raise _RefusalError("missing_required_parameter", f"{name or key} is missing: give a text")
    raise _RefusalError("invalid_type", f"{name or key} must be a text")


def _endpoint(fields: dict[str, Any]) -> str:
    method = _text(fields, "method")
    if method != "POST":
        raise _RefusalError("invalid_method", f"method {shown(method)} is unknown: use POST")
    url = _text(fields, "url")
    if url not in _REQUIRED_FIELD:
        raise _RefusalError("invalid_url", f"url {shown(url)} is unknown: use {', '.join(_REQUIRED_FIELD)}")
    return url


def _checked_body(fields: dict[str, Any], url: str) -> dict[str, Any]:
    body = fields.get("body")
    if body is None:
        raise _RefusalError("missing_required_parameter", "body is missing: give the request as an object")
    if not isinstance(body, dict):
        raise _RefusalError("invalid_type", "body must be an object")
    checked = cast("dict[str, Any]", body)
    required = _REQUIRED_FIELD[url]
    value = checked.get(required)
    if value is None:
        raise _RefusalError("missing_required_parameter", f"body.{required} is missing: {url} needs it")
    if required == "messages" and not isinstance(value, list):
        raise _RefusalError("invalid_type", "body.messages must be a list")
    if checked.get("stream") not in (None, False):
        raise _RefusalError("unsupported_value", "body.stream cannot be used in a batch: leave it out")
    return checked


def _max_tokens(body: dict[str, Any]) -> int:
    value = body.get("max_completion_tokens")
    if value is None:
        value = body.get("max_tokens")
    if type(value) is not int or value <= 0:  # not isinstance: true is no number of tokens
        return 0
    if value > _INT64_MAX:
        raise _RefusalError("integer_above_max_value", f"body.max_tokens is above {_INT64_MAX}: lower it")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return str(error)


def shown(value: str) -> str:
    """The value as a message may show it: short, and without line ends."""
    return ascii(value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "…")
