"""Profiles as text: the JSON file and record of a measurement, and the short form in a heartbeat. Pure."""

from __future__ import annotations

from dataclasses import asdict, astuple, fields
from datetime import date
from typing import Annotated, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.errors import UsageError
from broker.throughput import Profile

#: A heartbeat's profile is no longer than this (characters).
TEXT_CHARS = 400
_COEFFICIENTS = tuple(field.name for field in fields(Profile))[:6]
# No engine takes an hour for a step, nor a minute for a token. What says so is a mistake in the unit.
_StepSeconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
_TokenSeconds = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]

_Model = TypeVar("_Model", bound=BaseModel)


class ProfileValues(BaseModel):
    """The fields of ``Profile`` with their bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefill_a: _StepSeconds
    prefill_b: _TokenSeconds
    prefill_c: _TokenSeconds
    decode_d: _StepSeconds
    decode_e: _TokenSeconds
    decode_f: _TokenSeconds
    kv_tokens: int = Field(ge=16, le=10**12)
    seats: int = Field(ge=1, le=10**6)

    @classmethod
    def of(cls, profile: Profile) -> ProfileValues:
        """The fields of this profile."""
        return cls(**asdict(profile))

    def profile(self) -> Profile:
        """The profile with these fields."""
        return Profile(**self.model_dump())


class KindError(BaseModel):
    """How far a fit is from the measured times of one kind of step, relative to these.

    Attributes:
        points: measured points of that kind.
        mean: mean of the absolute relative errors.
        worst: largest of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    points: int = Field(ge=1)
    mean: float = Field(ge=0, allow_inf_nan=False)
    worst: float = Field(ge=0, allow_inf_nan=False)


class FitErrors(BaseModel):
    """The errors of a fit by kind of point; None where there was none of that kind.

    Attributes:
        prefill: steps that only prefill.
        decode: steps that only decode.
        mixed: steps that do both.
        whole: batches of requests, timed from their start to their end.
        saturated: all that the engine did while it was kept full, as it is at work.
        left_out: points taken for disturbed, and neither fitted nor counted above.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefill: KindError | None = None
    decode: KindError | None = None
    mixed: KindError | None = None
    whole: KindError | None = None
    saturated: KindError | None = None
    left_out: int = Field(default=0, ge=0)

    @property
    def points(self) -> int:
        """Points that were fitted."""
        kinds = (self.prefill, self.decode, self.mixed, self.whole, self.saturated)
        return sum(kind.points for kind in kinds if kind)


class ProfileRecord(BaseModel):
    """A measured profile: of what, when, and how well it fits.

    Attributes:
        device: kind of the device, as its engine reports it.
        model: name of the model.
        engine: kind of the engine.
        version: the engine's name and version.
        dtype: precision of the weights; empty where the engine does not tell.
        tensor_parallel: devices that share the model.
        max_batched_tokens: tokens a step may compute; 0 where the engine does not tell.
        variant: what else of the configuration decides its speed, such as ``eager``.
        measured: day of the measurement.
        profile: the measured times, seconds.
        errors: how far the fit is from what was measured.
        overhead: how much more a full engine took than its single steps promise; it is in ``profile`` already, and 1
            where nobody looked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(max_length=256)
    model: str = Field(max_length=512)
    engine: str = Field(max_length=64)
    version: str = Field(max_length=256)
    dtype: str = Field(default="", max_length=64)
    tensor_parallel: int = Field(default=1, ge=1, le=10**4)
    max_batched_tokens: int = Field(default=0, ge=0, le=10**9)
    variant: str = Field(default="", max_length=256)
    measured: date
    values: ProfileValues = Field(alias="profile")
    errors: FitErrors = FitErrors()
    overhead: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)

    @property
    def profile(self) -> Profile:
        """The measured times and sizes."""
        return self.values.profile()

    @property
    def configuration(self) -> str:
        """What was measured, in words: records of the same configuration replace each other."""
        return configuration(
            device=self.device,
            model=self.model,
            engine=self.engine,
            version=self.version,
            dtype=self.dtype,
            tensor_parallel=self.tensor_parallel,
            max_batched_tokens=self.max_batched_tokens,
            variant=self.variant,
        )

    def to_json(self, indent: int | None = None) -> str:
        """The record as JSON, on one line or indented."""
        return self.model_dump_json(by_alias=True, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> ProfileRecord:
        """A record from its JSON.

        Raises:
            UsageError: it is none; the message names the first field that is wrong.
        """
        return _validated(cls, text, "profile record")


def configuration(
    *,
    device: str,
    model: str,
    engine: str,
    version: str,
    dtype: str,
    tensor_parallel: int,
    max_batched_tokens: int,
    variant: str,
) -> str:
    """One line that two engines share exactly where one's profile is the other's, seats and KV memory apart."""
    parts = [model, device, engine, version, dtype, f"tp {tensor_parallel}", f"batch {max_batched_tokens}", variant]
    return " | ".join(" ".join(part.split()) for part in parts if part)


def profile_from_json(text: str | bytes) -> Profile:
    """A profile from a record's JSON, or from a JSON object with just the fields of ``Profile``.

    Raises:
        UsageError: it is neither; the message names the first field that is wrong.
    """
    if is_record(text):
        return ProfileRecord.from_json(text).profile
    return _validated(ProfileValues, text, "profile").profile()


def is_record(text: str | bytes) -> bool:
    """Whether this JSON means to be a record, rather than a bare profile."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict) and "profile" in found


def profile_text(profile: Profile) -> str:
    """The six coefficients as JSON, at most ``TEXT_CHARS`` long; empty where the device takes no time at all."""
    coefficients = astuple(profile)[:6]
    if not any(coefficients):
        return ""
    rounded = {name: float(f"{value:.6g}") for name, value in zip(_COEFFICIENTS, coefficients, strict=True)}
    return orjson.dumps(rounded).decode()


def parse_profile(text: str, kv_tokens: int, seats: int) -> Profile | None:
    """The profile that ``profile_text`` wrote; None where it is not one (anyone can write to Redis).

    Args:
        kv_tokens: tokens the device's KV cache holds, by its heartbeat.
        seats: most requests it runs at once, by its heartbeat.
    """
    if not text or len(text) > TEXT_CHARS:
        return None
    try:
        found = orjson.loads(text)
        if not isinstance(found, dict) or found.keys() != set(_COEFFICIENTS):
            return None
        profile = ProfileValues.model_validate({**found, "kv_tokens": kv_tokens, "seats": seats}, strict=True).profile()
    except (orjson.JSONDecodeError, ValidationError):
        return None
    return profile if any(astuple(profile)[:6]) else None


def _validated(kind: type[_Model], text: str | bytes, name: str) -> _Model:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise UsageError(f"not a valid {name}: {place}{first['msg']}") from None
