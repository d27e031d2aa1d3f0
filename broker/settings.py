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
from broker.redis_address import with_options


class Settings(BaseSettings):
    """All that can be set. Times are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="TOKENYARD_", extra="ignore", frozen=True)

    redis_url: SecretStr | None = Field(None, description="address: see broker/redis_address.py")
    redis_ca_file: Path | None = Field(None, description="certificates that sign the server's, for rediss://")
    redis_cert_file: Path | None = Field(None, description="our own certificate, where the server asks for one")
    redis_key_file: Path | None = Field(None, description="the key of our own certificate")
    pool: str = Field("default", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="pool of workers of one model")
    tenant: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$", description="whose jobs are submitted")
    api_keys_file: Path | None = Field(None, description="API keys of the gateway, 'TENANT KEY' a line")
    policy: str = Field("throughput", description="placement policy of the scheduler")
    state_dir: Path = Field(Path(".tokenyard"), description="data of the one-machine cluster")
    metrics_port: int = Field(0, ge=0, le=65535, description="a process serves its Prometheus metrics here; 0: not")
    metrics_host: str = Field("127.0.0.1", description="address that this port is listened on")
    traces_endpoint: str = Field("", description="where `tokenyard traces` sends traces, OTLP over HTTP")
    traces_share: float = Field(1.0, ge=0, le=1, description="share of the jobs that it traces")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    heartbeat_interval_s: float = Field(0.5, gt=0, le=1, description="a worker's heartbeat is at most this old")
    dead_after_s: float = Field(5.0, gt=1, le=600, description="a worker silent for this long is declared dead")
    lease_ttl_s: float = Field(3.0, gt=0.5, le=60, description="a standby scheduler takes over after this long")
    result_ttl_s: int = Field(7 * 86400, gt=0, description="results are kept this long after their batch ended")
    durable_replicas: int = Field(0, ge=0, le=100, description="replicas that must have what was submitted, too")
    max_attempts: int = Field(3, ge=1, le=100, description="a job that failed or lost its worker so often is given up")
    retry_first_s: float = Field(1.0, gt=0, le=600, description="a failed job is tried again after this, then doubled")
    max_backlog_jobs: int = Field(10_000_000, ge=0, description="most jobs that may wait in a pool; 0: no limit")
    max_backlog_bytes: int = Field(16 * 2**30, ge=0, description="most bytes of requests a pool holds; 0: no limit")
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
        return _with_tls(Settings(**{k: v for k, v in flags.items() if v is not None}))
    except ValidationError as e:
        first = e.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"setting {name} (TOKENYARD_{name.upper()}): {first['msg']}") from None
    except ValueError as e:  # broken TOML
        raise UsageError(f"cannot read {path}: {e}") from None


def _with_tls(settings: Settings) -> Settings:
    """The settings with what TLS needs as a part of the address: so it reaches every process that is given that.

    Raises:
        UsageError: a file is not there, or the address is none with TLS.
    """
    files = {
        "ssl_ca_certs": settings.redis_ca_file,
        "ssl_certfile": settings.redis_cert_file,
        "ssl_keyfile": settings.redis_key_file,
    }
    given = {option: path for option, path in files.items() if path is not None}
    if not given or settings.redis_url is None:
        return settings
    for path in given.values():
        if not path.is_file():
            raise UsageError(f"{path} is not a file: correct TOKENYARD_REDIS_CA_FILE, …_CERT_FILE or …_KEY_FILE")
    url = with_options(
        settings.redis_url.get_secret_value(), {name: str(path.absolute()) for name, path in given.items()}
    )
    return settings.model_copy(update={"redis_url": SecretStr(url)})
