"""A profile read from a file: the record of a measurement, or the bare times."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from broker.errors import InputFileError, UsageError
from broker.profiles import ProfileRecord, is_record, profile_from_json
from broker.throughput import Profile


class ProfileFile(NamedTuple):
    """What such a file holds: the times, and what was measured where it says so."""

    profile: Profile
    record: ProfileRecord | None


def read_profile_file(path: Path) -> ProfileFile:
    """Read a profile, from a record or from an object with just the fields of ``Profile``.

    Raises:
        InputFileError: the file cannot be read.
        UsageError: it holds neither; the message names the first field that is wrong.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputFileError(f"cannot read the profile {path}: {error.strerror}") from None
    try:
        if is_record(text):
            record = ProfileRecord.from_json(text)
            return ProfileFile(record.profile, record)
        return ProfileFile(profile_from_json(text), None)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
