"""The one settings model: environment ``TOKENYARD_*``, a TOML file named by ``TOKENYARD_CONFIG``, then flags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from broker.errors import UsageError


class Settings(BaseSettings):
    """All that can be set. Times are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="TOKENYARD_", extra="ignore", frozen=True)

    redis_url: SecretStr | None = Field(None, description="redis://, rediss:// or unix:// address")
    pool: str = Field("default", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="pool of workers of one model")
    policy: str = Field("throughput", description="placement policy of the scheduler")
    state_dir: Path = Field(Path(".tokenyard"), description="data of the one-machine cluster")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    heartbeat_interval_s: float = Field(0.5, gt=0, le=1, description="a worker's heartbeat is at most this old")
    dead_after_s: float = Field(5.0, gt=1, le=600, description="a worker silent for this long is declared dead")
    lease_ttl_s: float = Field(3.0, gt=0.5, le=60, description="a standby scheduler takes over after this long")
    result_ttl_s: int = Field(7 * 86400, gt=0, description="results are kept this long after their batch ended")
    max_attempts: int = Field(3, ge=1, le=100, description="a job whose worker went away this often is given up")
    window_jobs: int = Field(4096, ge=1, le=1_000_000, description="jobs the scheduler looks at, each priority")
    round_trip_s: float = Field(0.02, gt=0, le=5, description="time a device queue must hide")
    max_request_bytes: int = Field(16 * 2**20, gt=0, description="longest accepted line of a batch file")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags win over the environment, the environment over the file."""
        del dotenv_settings, file_secret_settings
        file = TomlConfigSettingsSource(settings_cls, os.environ.get("TOKENYARD_CONFIG"))
        return init_settings, env_settings, file


def load_settings(**flags: Any) -> Settings:
    """Read the settings; a flag that is None counts as not given.

    Raises:
        UsageError: a value is not valid, or the file cannot be read; names it.
    """
    path = os.environ.get("TOKENYARD_CONFIG")
    if path and not Path(path).is_file():
        raise UsageError(f"TOKENYARD_CONFIG names {path}, which is not a file")
    try:
        return Settings(**{k: v for k, v in flags.items() if v is not None})
    except ValidationError as e:
        first = e.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"setting {name} (TOKENYARD_{name.upper()}): {first['msg']}") from None
    except ValueError as e:  # broken TOML
        raise UsageError(f"cannot read {path}: {e}") from None
